"""What a plug-in may be that schedules: a rule, an algorithm of Stable-Baselines3, a factory.

- A subclass of :class:`~mixgym.agents.rule.Rule`: it acts at once; ``probes`` in its class names
  the probes that it reads.
- A subclass of an algorithm of Stable-Baselines3 or sb3-contrib: it is trained by `mixgym train`
  with the hierarchical policy and the defaults of the algorithm that it descends from.
- A :class:`~mixgym.agents.algorithm_presets.Preset`: the same with defaults of its own.
- A function ``(env, names=..., **options) -> agent``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mixgym.agents.algorithm_presets import PRESETS, Preset
from mixgym.agents.requires import RULE, Requires
from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import load_object, summary_of


@dataclass(frozen=True)
class Adopted:
    """What a plug-in was found to be.

    Attributes:
        summary: one line.
        factory: makes the agent, of one that acts at once.
        requires: the environment that it needs.
        training: how it is trained, of one that is.
    """

    summary: str
    factory: Callable[..., Any] | None = None
    requires: Requires = RULE
    training: Preset | None = None


def adopted(where: str, thing: Any) -> Adopted:
    """What a plug-in is.

    Raises:
        ConfigError: if it is nothing that schedules, beginning with ``where``.
    """
    if isinstance(thing, Preset):
        return Adopted(thing.summary, training=thing)
    if not callable(thing):
        raise ConfigError(
            f"{where}: is {thing!r}; give a subclass of mixgym.agents.rule.Rule, one of an "
            "algorithm of Stable-Baselines3, a Preset, or a function (env, names) -> agent"
        )
    if inspect.isclass(thing) and _is_sb3(thing):
        return Adopted(summary_of(thing), training=_descended(where, thing))
    _check_factory(where, thing)
    probes = dict(getattr(thing, "probes", {}))
    return Adopted(summary_of(thing), thing, replace(RULE, probes=probes))


def _is_sb3(kind: type[Any]) -> bool:
    """Whether a class is an algorithm of Stable-Baselines3, which is not imported to find out."""
    return any(base.__module__ == _BASE and base.__name__ == "BaseAlgorithm" for base in kind.mro())


_BASE = "stable_baselines3.common.base_class"


def _descended(where: str, kind: type[Any]) -> Preset:
    """The preset of the algorithm that a class descends from, with the class in its place.

    Raises:
        ConfigError: if it descends from none that has one.
    """
    for base in kind.mro():
        for preset in PRESETS.values():
            known = preset.algorithm
            if str(known).rpartition(":")[2] == base.__name__ and load_object(known) is base:
                summary = summary_of(kind) or preset.summary
                return replace(preset, algorithm=kind, summary=summary)
    raise ConfigError(
        f"{where}: {kind.__name__} descends from no algorithm that has defaults here "
        f"({', '.join(PRESETS)}); give a mixgym.agents.algorithm_presets.Preset with its policy, "
        "family and options"
    )


def _check_factory(where: str, thing: Callable[..., Any]) -> None:
    """Refuse what cannot be called as a factory, or makes no agent.

    Raises:
        ConfigError: naming what is missing.
    """
    missing = sorted(getattr(thing, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(
            f"{where}: has no {', '.join(missing)}; write it as mixgym.agents.rule.Rule says"
        )
    if inspect.isclass(thing) and not callable(getattr(thing, "predict", None)):
        raise ConfigError(
            f"{where}: {thing.__name__} has no method predict; make it a subclass of "
            "mixgym.agents.rule.Rule"
        )
    try:
        inspect.signature(thing).bind(None, names=())
    except TypeError:
        raise ConfigError(
            f"{where}: takes {inspect.signature(thing)}, and is called with (env, names=...) and "
            "its options by name; correct its arguments"
        ) from None
