"""What one supervised token counts for in the loss of a step, by the normaliser's name.

The loss of a step is the sum of weight * token loss. Only ``token``, the global token mean, does
not depend on how documents are packed, split or dealt; the others are kept to reproduce published
runs (HBP, arXiv 2503.07680, section on stable loss; LongAlign, arXiv 2401.18058).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError


@dataclass(frozen=True)
class StepTokens:
    """The documents of one optimiser step, over all micro-steps and replicas.

    Attributes:
        supervised: int64[n], supervised tokens of each document.
        pack: int64[n], the pack of each document, from 0.
        replica: int64[n], who trains it (one number for all devices that share a pack).
        replicas: how many there are, idle ones counted.
    """

    supervised: IntArray
    pack: IntArray
    replica: IntArray
    replicas: int

    def per_replica(self, values: IntArray | FloatArray) -> FloatArray:
        """float64[n], the sum of ``values`` over the replica of each document."""
        return np.bincount(self.replica, values, self.replicas).astype(np.float64)[self.replica]

    @property
    def units(self) -> tuple[FloatArray, int]:
        """Packs with supervised tokens: on the replica of each document (float64[n]), and in all.

        A pack counts once, through its first document that has supervised tokens.
        """
        has = np.flatnonzero(self.supervised > 0)
        _, first = np.unique(self.pack[has], return_index=True)
        marks = np.zeros(len(self.pack))
        marks[has[first]] = 1
        return self.per_replica(marks), len(first)


Weights = Callable[[StepTokens], FloatArray]


def _token(step: StepTokens) -> FloatArray:
    return np.full(len(step.supervised), _share(1.0, step.supervised.sum()))


def _token_mean_per_replica(step: StepTokens) -> FloatArray:
    return _share(1.0, step.replicas * step.per_replica(step.supervised))


def _sample_mean(step: StepTokens) -> FloatArray:
    samples = step.per_replica((step.supervised > 0).astype(np.int64))
    return _share(1.0, step.replicas * samples * step.supervised)


def _sum(step: StepTokens) -> FloatArray:
    return np.full(len(step.supervised), 1.0 / step.replicas)


def _longalign(step: StepTokens) -> FloatArray:
    return _share(1.0, (step.supervised > 0).sum() * step.supervised)


def _ave_token(step: StepTokens) -> FloatArray:
    """Summed loss * replicas / (all units * mean tokens of a unit), averaged over replicas."""
    _, units = step.units
    mean = _share(step.supervised.sum(), units)
    return np.full(len(step.supervised), _share(1.0, units * mean))


def _ave_token_printed(step: StepTokens) -> FloatArray:
    """Summed loss / (units of the replica * mean tokens of a unit), averaged over replicas."""
    mine, units = step.units
    mean = _share(step.supervised.sum(), units)
    return _share(1.0, step.replicas * mine * mean)


def _share(part: float, whole: FloatArray | IntArray | float) -> FloatArray:
    """``part / whole``, 0 where there is nothing."""
    safe = np.where(np.asarray(whole) > 0, whole, 1)
    return np.where(np.asarray(whole) > 0, part / safe, 0.0)


@dataclass(frozen=True)
class Normaliser:
    """A loss normaliser by name.

    Attributes:
        summary: one line.
        weights: documents of a step -> float64[n], the weight of one token of each.
    """

    summary: str
    weights: Weights


NORMALISERS: dict[str, Normaliser] = {
    "token": Normaliser("mean over the supervised tokens of the whole step", _token),
    "ave_token": Normaliser(
        "HBP's, divided by the mean units of a replica: the same as token", _ave_token
    ),
    "ave_token_printed": Normaliser(
        "HBP's as printed: replicas with fewer packs count more", _ave_token_printed
    ),
    "token_mean_per_replica": Normaliser(
        "mean over the tokens of each replica, then over replicas", _token_mean_per_replica
    ),
    "sample_mean": Normaliser(
        "mean over the documents of each replica, each by its mean, then over replicas",
        _sample_mean,
    ),
    "sum": Normaliser("sum over the tokens of each replica, mean over replicas", _sum),
    "longalign": Normaliser("mean over the documents of the step, each by its mean", _longalign),
}


_TOKEN_MEANS = ("token", "ave_token")
"""Names of the global token mean, for which no weights have to be computed."""


def token_weights(name: str, step: StepTokens) -> FloatArray:
    """float64[n], the weight of one supervised token of each document in the step's loss.

    Args:
        name: of the normaliser.
        step: the documents, and where they are trained.

    Raises:
        ConfigError: for an unknown name.

    >>> step = StepTokens(np.array([2, 8, 10, 20]), np.arange(4), np.array([0, 0, 1, 1]), 2)
    >>> token_weights("token_mean_per_replica", step).round(5).tolist()
    [0.05, 0.05, 0.01667, 0.01667]
    """
    if name not in NORMALISERS:
        raise ConfigError(
            f"packing.normaliser={name!r} is unknown: choose one of {', '.join(NORMALISERS)}"
        )
    return NORMALISERS[name].weights(step)


@dataclass(frozen=True)
class Weighing:
    """What tokens count for in a step, by the name of a normaliser.

    Args:
        name: of the normaliser.
        supervised: int64[n], supervised tokens of each document of the interval.
    """

    name: str
    supervised: IntArray

    def step(
        self, packs: Sequence[IntArray], replicas: int
    ) -> tuple[Sequence[FloatArray | None], float | None]:
        """For each pack the weights of its documents, and what the step's sum is divided by.

        The global token mean needs neither: all weights are 1, and their sum divides.
        """
        if self.name in _TOKEN_MEANS or not packs:
            return [None] * len(packs), None
        sizes = [len(documents) for documents in packs]
        pack = np.repeat(np.arange(len(packs)), sizes)
        tokens = StepTokens(self.supervised[np.concatenate(packs)], pack, pack % replicas, replicas)
        weights = token_weights(self.name, tokens)
        return np.split(weights, np.cumsum(sizes)[:-1]), 1.0
