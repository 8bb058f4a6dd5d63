"""One word -> an agent: its factory, what it needs, what it is. Light: imports nothing heavy."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError


@dataclass(frozen=True)
class Algorithm:
    """A registered scheduler.

    Attributes:
        summary: one line for ``mixgym list algorithms``.
        factory: ``module:name`` of a callable ``(env, **options) -> agent``.
        requires: the environment that it needs, whatever its options.
        needs_from: ``module:name`` of a function ``options -> Requires``, for one whose needs
            depend on its options; ``requires`` then says what it needs without any.
    """

    summary: str
    factory: str
    requires: Requires
    needs_from: str | None = None

    def load(self) -> Callable[..., Any]:
        """Import the factory."""
        return _found(self.factory)

    def needs(self, options: Mapping[str, Any]) -> Requires:
        """The environment that it needs with these options.

        Raises:
            ConfigError: for options that it does not take.
        """
        if self.needs_from is None:
            return self.requires
        needs: Requires = _found(self.needs_from)(dict(options))
        return needs


def _found(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


TRAINED = Requires()

_RULE = Requires(action="weights", observation="dict", signals=True)


def _rule(name: str, summary: str) -> Algorithm:
    return Algorithm(summary, f"mixgym.agents.rules:{name}", _RULE)


ALGORITHMS = {
    "uniform": _rule("Uniform", "every trainable source alike"),
    "proportional": _rule("Proportional", "sources by their size"),
    "temperature": _rule("Temperature", "size ** (1 / tau): between proportional and uniform"),
    "fixed": _rule("Fixed", "weights that you give"),
    "scripted": _rule("Scripted", "weights along the budget, linear between the points you give"),
    "easy_to_hard": Algorithm(
        "a curriculum: strata from the easiest to the hardest along the budget",
        "mixgym.agents.references:EasyToHard",
        _RULE,
    ),
    "exp3": Algorithm(
        "a bandit over sources, paid by the fall of their held-out loss",
        "mixgym.agents.references:Exp3",
        _RULE,
    ),
    "ppo": Algorithm(
        "PPO with the hierarchical policy; train it first (mixgym train --algo ppo)",
        "mixgym.agents.registry:needs_training",
        TRAINED,
    ),
}


def needs_training(*_: Any, **__: Any) -> Any:
    """Say that a trained algorithm cannot decide before it is trained.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "agent.name: this algorithm has to be trained first: run `mixgym train`, "
        "then give the run's folder as the agent"
    )


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    near = difflib.get_close_matches(name, ALGORITHMS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"agent.name={name}: unknown; {hint}(known: {', '.join(ALGORITHMS)})")
