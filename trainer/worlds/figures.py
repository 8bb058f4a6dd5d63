"""How well a world predicts runs that it has not seen, beside what needs no world.

Runs are divided into folds; each fold is predicted by a fit to the others, from the first decision
to the last, given nothing but what was trained on. The nulls: the mean over the mixtures of the
other runs at the same decision; losses that stay where they were half way (beside the world's
changes from there on, as both know that loss); and a law of amounts, power laws of linearly
transferred tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.trainer.worlds.fitting import fit, predict
from mixgym.trainer.worlds.parameters import Parameters
from mixgym.trainer.worlds.trajectories import Corpus, Trajectories, mean_known

_CHANCE = 0.02  # share of a null's error that a fit to random losses may be better by


@dataclass(frozen=True)
class Predicted:
    """Runs, predicted by fits that have not seen them.

    Attributes:
        seen: float64[R, T, K], recorded losses of sources.
        world, amounts, mean: float64[R, T, K], predicted by the world, by a law of amounts, and
            the mean over the other runs.
        last: int[R], the last decision of every run.
    """

    seen: FloatArray
    world: FloatArray
    amounts: FloatArray
    mean: FloatArray
    last: IntArray

    def at_end(self, values: FloatArray) -> FloatArray:
        """float64[R, K], what ``values`` are at the last decision of every run."""
        return np.asarray(values[np.arange(len(values)), self.last])


def cross_validated(
    runs: Trajectories, corpus: Corpus, *, folds: int = 4, iterations: int = 100
) -> Predicted:
    """Predict every run by fits to the other folds."""
    whole = Parameters(corpus), Parameters(corpus, amounts=True)
    seen = runs.by_source
    world, amounts, mean = (np.full(seen.shape, np.nan) for _ in range(3))
    for part in range(min(folds, len(runs))):
        held = np.arange(len(runs)) % min(folds, len(runs)) == part
        others, mine = runs.pick(~held), runs.pick(held)
        for values, parameters in zip((world, amounts), whole, strict=True):
            task = fit(others, parameters, iterations=iterations).task
            values[held] = _by_source(predict(task, mine), mine)
        mean[held] = mean_known(others.by_source)
    return Predicted(seen, world, amounts, mean, runs.last)


def _by_source(predicted: FloatArray, runs: Trajectories) -> FloatArray:
    """float64[R, T, K], the mean over the strata that were measured."""
    return Trajectories(
        runs.steps,
        runs.rate,
        runs.supervised,
        np.where(np.isfinite(runs.nll), predicted, np.nan),
        runs.error,
    ).by_source


def figures(found: Predicted, names: Sequence[str]) -> dict[str, Any]:
    """The figures of a fit, plain data.

    Returns:
        ``error``, mean absolute error in nats of ``world``, ``amounts`` and ``mean``;
        ``second_half``, the same there, of ``world`` and ``stay``, both from the loss at half
        time; ``explained``, the share of the
        variance of the final losses around their means over mixtures that the world explains, over
        all sources and ``by_source``; ``rank``, Spearman's correlation of the final mean losses;
        ``*_amounts`` the same of the law of amounts.
    """
    kinds = {"world": found.world, "amounts": found.amounts, "mean": found.mean}
    end = {name: found.at_end(values) for name, values in {**kinds, "seen": found.seen}.items()}
    late, stay, onward = _second_half(found)
    return {
        "runs": len(found.seen),
        "error": {name: _error(values, found.seen) for name, values in kinds.items()},
        "second_half": {
            "world": _error(onward[late], found.seen[late]),
            "stay": _error(stay[late], found.seen[late]),
        },
        "explained": _explained(end["world"], end["seen"], end["mean"]),
        "explained_amounts": _explained(end["amounts"], end["seen"], end["mean"]),
        "by_source": {
            name: {
                "error": _error(found.world[..., k], found.seen[..., k]),
                "mean": _error(found.mean[..., k], found.seen[..., k]),
                "explained": _explained(
                    end["world"][:, [k]], end["seen"][:, [k]], end["mean"][:, [k]]
                ),
            }
            for k, name in enumerate(names)
        },
        "rank": _rank(end["world"], end["seen"]),
        "rank_amounts": _rank(end["amounts"], end["seen"]),
    }


def _error(one: FloatArray, other: FloatArray) -> float:
    return float(np.nanmean(np.abs(one - other)))


def _second_half(found: Predicted) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Where the second half of runs is, bool[R, T]; losses that stay, and that go on as predicted.

    Both float64[R, T, K] start from the losses at half time.
    """
    at, rows = np.arange(found.seen.shape[1]), np.arange(len(found.seen))
    late = (at > found.last[:, None] // 2) & (at <= found.last[:, None])
    half = rows, found.last // 2
    stay = np.broadcast_to(found.seen[half][:, None], found.seen.shape)
    return late, stay, stay + found.world - found.world[half][:, None]


def _explained(predicted: FloatArray, seen: FloatArray, mean: FloatArray) -> float:
    """1 - squared error of the prediction over that of the mean over mixtures."""
    return float(1.0 - np.nansum((predicted - seen) ** 2) / np.nansum((mean - seen) ** 2))


def _rank(predicted: FloatArray, seen: FloatArray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(np.nanmean(predicted, -1), np.nanmean(seen, -1)).statistic)


def is_useful(report: dict[str, Any]) -> bool:
    """Whether the world predicts clearly better than both nulls."""
    error, late = report["error"], report["second_half"]
    least = 1.0 - _CHANCE
    return bool(error["world"] < least * error["mean"] and late["world"] < least * late["stay"])
