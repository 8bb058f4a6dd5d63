"""The errors that mixgym raises on bad input.

Each names what was wrong, the value seen and the fix, in one line, so that the command line can
print it as it is.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like ``name``; None where none is like it.

    Args:
        name: what was written.
        known: what could have been meant.
        cutoff: likeness that is needed, from 0 to 1.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The part of a message that helps after an unknown name.

    >>> did_you_mean("unifrom", ["fixed", "uniform"])
    'did you mean uniform? (known: fixed, uniform)'
    """
    names = list(known)
    near = nearest(name, names, cutoff)
    return (f"did you mean {near}? " if near else "") + f"(known: {', '.join(names)})"


class MixgymError(ValueError):
    """Bad input: the message names the file, line, source or key, and what to do."""


class ConfigError(MixgymError):
    """The configuration names something that is unknown, missing or contradictory."""


class SourceError(MixgymError):
    """A source cannot be read or used as asked."""


class PackingError(MixgymError):
    """Documents would see each other, or do not fit where they are to be packed."""


class DivergenceError(MixgymError):
    """Training or evaluation met a non-finite loss."""


class RunError(MixgymError):
    """A run folder cannot be created, resumed or read."""


def check_reset_options(options: Mapping[str, Any] | None, known: Sequence[str] = ()) -> None:
    """Refuse what ``reset(options=...)`` does not know.

    Raises:
        MixgymError: for an option that is not among the ``known`` ones.
    """
    for name in options or {}:
        if name not in known:
            hint = (
                did_you_mean(str(name), known)
                if known
                else "a single environment takes none (vector environments take reset_mask)"
            )
            raise MixgymError(f"reset(options=...): unknown option {name!r}: {hint}")
