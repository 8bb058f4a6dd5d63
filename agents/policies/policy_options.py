"""Options of policies: unknown ones are refused, with the nearest name that is known."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixgym.envs.errors import did_you_mean


def known_only(given: Mapping[str, Any], known: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuse options that a policy does not take.

    Args:
        given: options as they came.
        known: those that are passed on to Stable-Baselines3.
        also: those that the policy takes itself, for the message.

    Raises:
        TypeError: for an unknown one, and for state-dependent exploration.
    """
    for name in given:
        if name not in known:
            names = sorted({*known, *also} - {"use_sde", "level"})
            raise TypeError(
                f"{name}: not an option of the hierarchical policy; {did_you_mean(name, names)}"
            )
    if given.get("use_sde"):
        raise TypeError("use_sde: rows have no state-dependent exploration; leave it out")
