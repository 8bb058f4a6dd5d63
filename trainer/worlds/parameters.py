"""What is fitted of a world: a vector of unbounded numbers with priors, and the task it stands for.

Most constants have a common value and a deviation for every source (and stratum), each drawn to 0
by a prior of its own width, so that few runs suffice. Losses start where they were measured: what
is fitted is how the way down is divided and taken.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.dynamics import CurveState, mastery
from mixgym.envs.curves.task import CurveTask, simple
from mixgym.trainer.worlds.trajectories import Corpus

_PRIORS: dict[str, tuple[str, float, float]] = {
    # name: (shape, mean, standard deviation)
    "floor": ("one", -0.5, 1.0),  # logit of its share of the loss at the start
    "floor_source": ("source", 0.0, 0.7),
    "floor_cell": ("cell", 0.0, 0.2),
    "base": ("one", 0.0, 1.0),  # logit of its share of what can be learnt
    "base_source": ("source", 0.0, 0.7),
    "base_scale": ("one", -3.0, 1.0),  # log, of the intrinsic time of a run
    "base_scale_source": ("source", 0.0, 0.4),
    "base_exponent": ("one", 0.0, 0.7),  # log
    "base_exponent_source": ("source", 0.0, 0.2),
    "scale": ("one", -3.0, 1.5),  # log, of the intrinsic time of a run
    "scale_source": ("source", 0.0, 1.0),
    "scale_cell": ("cell", 0.0, 0.2),
    "exponent": ("one", -0.5, 0.5),  # log
    "exponent_source": ("source", 0.0, 0.2),
    "transfer": ("one", 0.1, 0.2),
    "transfer_pair": ("pair", 0.0, 0.15),
    "spread": ("one", 1.0, 1.0),  # logit
    "lasting": ("one", 0.0, 1.0),  # logit
    "forgetting": ("one", 1.0, 1.0),  # log, of one over the intrinsic time of a run
    "known": ("one", -3.0, 1.0),  # log, of the intrinsic time of a run
    "rarity": ("one", -2.0, 1.0),  # log nats
    "rarity_source": ("source", 0.0, 0.7),
    "kinship": ("one", -2.0, 1.5),  # logit
    "kinship_source": ("source", 0.0, 1.0),
    "fading": ("one", 1.0, 1.0),  # log, of one over the intrinsic time of a run
    "begun": ("one", -3.0, 1.0),  # log, of the intrinsic time of a run
    "warmth": ("one", -3.0, 1.0),  # log nats
    "warmth_source": ("source", 0.0, 0.3),
    "cooling": ("one", 3.0, 1.0),  # log, of one over the intrinsic time of a run
    "patience": ("one", 2.0, 0.7),  # log passes
    "overfit": ("one", -2.0, 1.0),  # log nats
    "overfit_source": ("source", 0.0, 0.7),
    "free_passes": ("one", 1.5, 0.7),  # log passes
    "batch_power": ("one", 0.0, 1.0),  # logit
    "rate_harm": ("one", -1.0, 1.0),  # log
}


_AMOUNTS = {
    # logits and logarithms of nothing, or of all
    "base": -20.0, "warmth": -20.0, "rarity": -20.0, "lasting": 20.0, "batch_power": 20.0,

    "rate_harm": -20.0,
}  # fmt: skip
"""What is held fast in a law of amounts: no common part, no forgetting, no learning rate."""
_FAST = 1e-6  # standard deviation of what is held fast


@dataclass(frozen=True)
class Parameters:
    """The layout of the vector for a corpus.

    Attributes:
        corpus: of the runs.
        amounts: fit a law of amounts only, to compare with: power laws of linearly transferred
            tokens, each counting alike.
    """

    corpus: Corpus
    amounts: bool = False

    @cached_property
    def places(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Name -> (its slice, its shape)."""
        sources, strata = self.corpus.shape
        shapes = {"one": (), "source": (sources, 1), "cell": (sources, strata)}
        places, start = {}, 0
        for name, (kind, _, _) in _PRIORS.items():
            shape = (sources, sources) if kind == "pair" else shapes[kind]
            size = int(np.prod(shape))
            places[name] = (slice(start, start + size), shape)
            start += size
        return places

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return max(place.stop for place, _ in self.places.values())

    @cached_property
    def mean(self) -> FloatArray:
        """float64[P], means of the priors."""
        return self._of(1, _AMOUNTS)

    @cached_property
    def deviation(self) -> FloatArray:
        """float64[P], standard deviations of the priors."""
        return self._of(2, dict.fromkeys(_AMOUNTS, _FAST))

    def _of(self, column: int, held: dict[str, float]) -> FloatArray:
        values = np.empty(self.size)
        for name, (place, _) in self.places.items():
            values[place] = _PRIORS[name][column]
            if self.amounts and name in held:
                values[place] = held[name]
        return values

    def named(self, vector: FloatArray) -> dict[str, FloatArray]:
        """The parts of a vector [..., P], each in its own shape after the leading axes."""
        lead = vector.shape[:-1]
        return {
            name: vector[..., place].reshape(*lead, *(shape or (1, 1)))
            for name, (place, shape) in self.places.items()
        }

    def task(self, vector: FloatArray) -> CurveTask:
        """The task that a vector stands for; leading axes (other vectors) stay."""
        corpus, part = self.corpus, self.named(vector)
        sources, strata = corpus.shape
        lead = vector.shape[:-1]
        cells = np.ones((*lead, sources, strata))
        column = cells[..., :1]
        start = np.nan_to_num(corpus.start)
        floor = start * _logistic(part["floor"] + part["floor_source"] + part["floor_cell"])
        present = corpus.size > 0
        mean_fall = ((start - floor) * present).sum(-1, keepdims=True) / present.sum(
            -1, keepdims=True
        )
        base = mean_fall * _logistic(part["base"] + part["base_source"])
        warmth = np.exp(part["warmth"] + part["warmth_source"])
        known = corpus.span * np.exp(part["known"]) * column if corpus.pretrained else 0.0 * column

        def scalar(value: FloatArray) -> FloatArray:
            return value[..., 0, 0]

        constants = {
            **{
                name: np.broadcast_to(v, (*lead, *v.shape))
                for name, v in simple(sources, strata).items()
            },
            "targets": cells[..., 0],
            "size": corpus.size * cells,
            "cost": np.nan_to_num(corpus.cost, nan=1.0) * cells,
            "floor": floor,
            "amplitude": np.zeros_like(floor),
            "scale": corpus.span
            * np.exp(part["scale"] + part["scale_source"] + part["scale_cell"]),
            "exponent": np.exp(part["exponent"] + part["exponent_source"]) * cells,
            "base": base,
            "base_scale": corpus.span * np.exp(part["base_scale"] + part["base_scale_source"]),
            "base_exponent": np.exp(part["base_exponent"] + part["base_exponent_source"]),
            "transfer": self._transfer(part),
            "spread": _spread(part["spread"], strata),
            "threshold": 0.0 * column,
            "lasting": scalar(_logistic(part["lasting"])),
            "forgetting": scalar(np.exp(part["forgetting"])) / corpus.span,
            "known": known,
            "rarity": np.exp(part["rarity"] + part["rarity_source"]),
            "kinship": _logistic(part["kinship"] + part["kinship_source"]),
            "fading": scalar(np.exp(part["fading"])) / corpus.span,
            "begun": corpus.span * scalar(np.exp(part["begun"])),
            "warmth": warmth,
            "cooling": scalar(np.exp(part["cooling"])) / corpus.span,
            "patience": np.exp(part["patience"]) * column,
            "overfit": np.exp(part["overfit"] + part["overfit_source"]),
            "free_passes": np.exp(part["free_passes"]) * column,
            "budget": corpus.span * cells[..., 0, 0],
            "batch": corpus.batch * cells[..., 0, 0],
            "batch_power": scalar(_logistic(part["batch_power"])),
            "rate_harm": scalar(np.exp(part["rate_harm"])),
            "noise": 0.0 * cells,
        }
        task = CurveTask(**constants)
        before = mastery(task, CurveState.start(task))
        constants["amplitude"] = np.where(
            present, np.maximum(start - floor - base, 1e-3) / (1.0 - before), 0.0
        )
        return CurveTask(**constants)

    def _transfer(self, part: dict[str, FloatArray]) -> FloatArray:
        sources, _ = self.corpus.shape
        own = np.eye(sources)
        between = part["transfer"] + part["transfer_pair"]
        return own + (1.0 - own) * between

    def moved(self, vector: FloatArray, step: float) -> FloatArray:
        """float64[P + 1, P], the vector, and below it the vector with one number raised each."""
        return vector + np.vstack([np.zeros((1, self.size)), step * np.eye(self.size)])


def _widened(constants: dict[str, FloatArray], lead: tuple[int, ...]) -> dict[str, FloatArray]:
    return {name: np.broadcast_to(v, (*lead, *v.shape)) for name, v in constants.items()}


def _logistic(value: FloatArray) -> FloatArray:
    return 0.5 + 0.5 * np.tanh(0.5 * value)


def _spread(value: FloatArray, strata: int) -> FloatArray:
    away = np.abs(np.arange(strata)[:, None] - np.arange(strata))
    return np.asarray(_logistic(value) ** away)
