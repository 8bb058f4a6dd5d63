"""What the runs of a library differ in, drawn by number.

A run's draws depend on the library's seed and the run's number and on nothing else: a longer
library begins with a shorter one. Of ten runs the last two are a designed pair: the same two
mixtures, each for half of the budget, in either order, so that the worth of order can be measured.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixgym.agents.random_pieces import CONCENTRATIONS, Centre, draw_pieces
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.random_streams import stream
from mixgym.trainer.config import AgentOptions, RunConfig

RULE = "random_pieces"
VARY = ("rate", "steps")
"""What may vary beside the mixture: the learning rate, and the length of the run."""

RATE_FACTOR, STEPS_FACTOR = 3.0, 2.0
"""By how much at most, either way; log-uniform."""

BLOCK, PAIR_FROM = 10, 8
_BUDGETS = ("steps", "interval", "supervised_tokens", "tokens")
"""Keys of ``training`` that a longer run has more of: it has as many decisions."""

Kind = Literal["constant", "changing", "first order", "second order"]


@dataclass(frozen=True)
class RunDraw:
    """What one run has of its own.

    Attributes:
        name: of its folder.
        kind: constant or changing at random; first and second order of a designed pair.
        draw: of the rule's streams.
        centre, concentration, at, reverse: see :class:`mixgym.agents.random_pieces.RandomPieces`.
        rate_factor: on the learning rate.
        steps_factor: on the budget and the interval.
    """

    name: str
    kind: Kind
    draw: int
    centre: Centre
    concentration: float
    at: tuple[float, ...]
    reverse: bool
    rate_factor: float
    steps_factor: float

    @property
    def options(self) -> dict[str, Any]:
        """Options of the rule."""
        names = ("draw", "centre", "concentration", "reverse")
        own = {name: getattr(self, name) for name in names}
        return {**own, "at": list(self.at)}  # as YAML reads it back


def draw_run(seed: int, number: int, vary: Collection[str] = ()) -> RunDraw:
    """The draws of run ``number`` of the library of ``seed``.

    >>> draw_run(0, 8).draw == draw_run(0, 9).draw, draw_run(0, 9).reverse
    (True, True)
    """
    place = number % BLOCK
    is_paired = place >= PAIR_FROM
    first = number - place + PAIR_FROM if is_paired else number
    rng = stream(seed, "record", f"run {first}")
    own = int(rng.integers(2**31))
    drawn = draw_pieces(own)
    # always drawn, so that asking for them changes nothing else
    rate, steps = _log_uniform(rng, RATE_FACTOR), _log_uniform(rng, STEPS_FACTOR)
    concentration = float(rng.choice(CONCENTRATIONS[:-1])) if is_paired else drawn.concentration
    return RunDraw(
        name=f"run-{number:04d}",
        kind=_kind(is_paired, number > first, bool(drawn.at)),
        draw=own,
        centre=drawn.centre,
        concentration=concentration,
        at=(0.5,) if is_paired else drawn.at,
        reverse=is_paired and number > first,
        rate_factor=rate if "rate" in vary else 1.0,
        steps_factor=steps if "steps" in vary else 1.0,
    )


def check_vary(vary: Collection[str]) -> None:
    """Refuse what cannot vary.

    Raises:
        ConfigError: naming what can.
    """
    for word in vary:
        if word not in VARY:
            raise ConfigError(f"--vary {word}: unknown; {did_you_mean(word, VARY)}")


def configured(config: RunConfig, draw: RunDraw) -> RunConfig:
    """The configuration of one run: ``config`` under what was drawn, recorded and not kept."""
    training = config.training.model_dump()
    for key in _BUDGETS:
        if training.get(key) is not None:
            training[key] = max(1, round(training[key] * draw.steps_factor))
    training["learning_rate"] *= draw.rate_factor
    kept = {"keep_model": False, "keep_last": 0, "tensorboard": config.run.tensorboard}
    run = config.run.model_copy(update={**kept, "dir": f"{config.run.dir}/{draw.name}"})
    return config.model_copy(
        update={
            "training": type(config.training).model_validate(training),
            "agent": AgentOptions(name=RULE, options=draw.options),
            "run": run,
        }
    )


def _kind(is_paired: bool, is_second: bool, changes: bool) -> Kind:
    if is_paired:
        return "second order" if is_second else "first order"
    return "changing" if changes else "constant"


def _log_uniform(rng: np.random.Generator, factor: float) -> float:
    """Between ``1 / factor`` and ``factor``."""
    return float(np.exp(rng.uniform(-1.0, 1.0) * np.log(factor)))
