"""``mixgym fit``: a fast world fitted to recorded runs, judged on runs that it has not seen.

The world is a readable file, written only if it predicts unseen runs better than both nulls: the
mean over mixtures, and losses that stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.tasks.fitted import CONSTANTS, FittedWorld
from mixgym.envs.errors import ConfigError, RunError
from mixgym.trainer.runs.tables import number, show, table
from mixgym.trainer.worlds.figures import cross_validated, figures, is_useful
from mixgym.trainer.worlds.fitting import Fit, fit, predict
from mixgym.trainer.worlds.order import order_effects
from mixgym.trainer.worlds.parameters import Parameters
from mixgym.trainer.worlds.pictures import draw_curves
from mixgym.trainer.worlds.trajectories import Recorded, Trajectories, read_runs

LEAST_RUNS = 8
_LEAST_STAYS, _MOST_STAYS = 0.5, 0.99


def fit_command(
    folders: Sequence[Path],
    *,
    out: Path,
    origin: str = "",
    folds: int = 4,
    picture: Path | None = None,
    json_output: bool = False,
) -> dict[str, Any]:
    """Fit, write the world, and print its figures unless JSON is wanted.

    Raises:
        ConfigError: for runs that cannot be read, or fewer than :data:`LEAST_RUNS`.
        RunError: if the fit is no better than the nulls; the figures are in the message.
    """
    report = fit_runs(folders, out=out, origin=origin, folds=folds, picture=picture)
    if not json_output:
        show(fit_table(report), *_lines(report))
    return report


def fit_runs(
    folders: Sequence[Path],
    *,
    out: Path,
    origin: str = "",
    folds: int = 4,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Fit a world to runs and write it.

    Args:
        folders: of runs, or folders of such folders.
        out: the file to write; its stem is the world's name.
        origin: of the data, for the record.
        folds: that unseen runs are predicted in.
        picture: a PNG of predicted and seen curves, if wanted.

    Returns:
        The figures of :func:`mixgym.trainer.worlds.figures.figures`, ``order`` and ``world``.
    """
    recorded = read_runs(folders)
    if len(recorded.runs) < LEAST_RUNS:
        raise ConfigError(
            f"{len(recorded.runs)} runs: a fit needs at least {LEAST_RUNS}, better 30; record "
            "more with mixgym record"
        )
    found = cross_validated(recorded.runs, recorded.corpus, folds=folds)
    report = figures(found, recorded.corpus.names)
    _need_useful(report)
    whole = fit(recorded.runs, Parameters(recorded.corpus))
    report["order"] = order_effects(recorded, whole.task)
    world = world_of(whole, recorded, name=out.stem, about={"origin": origin, "fit": report})
    out.parent.mkdir(parents=True, exist_ok=True)
    world.write(out)
    if picture is not None:
        storage.write_bytes(picture, draw_curves(found, recorded.corpus.names))
    return {**report, "world": str(out)}


def _need_useful(report: dict[str, Any]) -> None:
    if is_useful(report):
        return
    error, late = report["error"], report["second_half"]
    raise RunError(
        "the fit predicts runs that it has not seen no better than the nulls, so no world was "
        f"written: mean absolute error {error['world']:.4f} nats, the mean over mixtures "
        f"{error['mean']:.4f}; second half {late['world']:.4f}, losses that stay "
        f"{late['stay']:.4f} ({report['runs']} runs): record more runs, or runs that differ more"
    )


def world_of(found: Fit, recorded: Recorded, *, name: str, about: dict[str, Any]) -> FittedWorld:
    """The world that a fit stands for."""
    task, corpus = found.task, recorded.corpus
    row_error, stays = measured_errors(recorded.runs, found, corpus.held_out)
    return FittedWorld(
        name=name,
        sources=corpus.names,
        constants={k: np.array(getattr(task, k)) for k in CONSTANTS},
        spread=_spread(found),
        row_error=row_error,
        stays=stays,
        budget=corpus.read,
        about={**about, "learning_rate": corpus.rate, "pretrained": corpus.pretrained},
    )


def _spread(found: Fit) -> dict[str, FloatArray]:
    """Standard deviations of constants by source, as tasks around a world are moved by them."""
    sources, strata = found.parameters.corpus.shape
    own = found.parameters.named(found.spread)

    def cells(*names: str) -> FloatArray:
        total = sum((np.broadcast_to(own[n], (sources, strata)) ** 2 for n in names), 0.0)
        return np.asarray(np.sqrt(total))

    between = np.broadcast_to(own["transfer_pair"], (sources, sources)).copy()
    np.fill_diagonal(between, 0.0)
    return {
        "scale": cells("scale_source", "scale_cell"),
        "exponent": cells("exponent_source"),
        "base_scale": cells("base_scale_source")[:, :1],
        "base_exponent": cells("base_exponent_source")[:, :1],
        "overfit": cells("overfit_source")[:, :1],
        "rarity": cells("rarity_source")[:, :1],
        "warmth": cells("warmth_source")[:, :1],
        "transfer": between,
    }


def measured_errors(
    runs: Trajectories, found: Fit, held_out: FloatArray
) -> tuple[FloatArray, float]:
    """What held-out losses are off by.

    Returns:
        float64[K, G], relative standard error times the root of the held-out tokens; and the share
        of its variance that is the same in all measurements of a run, from how much the distance
        between seen and predicted moves from one decision to the next.
    """
    relative = np.nanmedian(runs.error / runs.nll, axis=(0, 1))
    row_error = np.nan_to_num(relative * np.sqrt(held_out), nan=1.0)
    off = (runs.nll - predict(found.task, runs)) / runs.nll
    moves = np.diff(off, axis=1)
    moving = 0.5 * np.nanmedian(moves**2, axis=(0, 1)) / 0.455  # the median of a chi-squared of 1
    share = np.nanmedian(moving / np.maximum(relative, 1e-6) ** 2)
    return row_error, float(np.clip(1.0 - share, _LEAST_STAYS, _MOST_STAYS))


def fit_table(report: dict[str, Any]) -> Any:
    """The figures by source."""
    rows = [
        [name, number(row["error"], 4), number(row["mean"], 4), number(row["explained"], 2)]
        for name, row in report["by_source"].items()
    ]
    columns = ["source", "error (nats)", "of the mean over mixtures", "share explained at the end"]
    return table(
        f"{report['runs']} runs, each predicted by fits that had not seen it", columns, rows
    )


def _lines(report: dict[str, Any]) -> list[str]:
    error, late, order = report["error"], report["second_half"], report["order"]
    lines = [
        f"mean absolute error {error['world']:.4f} nats; nulls: mean over mixtures "
        f"{error['mean']:.4f}, law of amounts {error['amounts']:.4f}",
        f"second half {late['world']:.4f}; losses that stay {late['stay']:.4f}",
        f"share of the mixtures' effect explained {report['explained']:.2f}, rank correlation of "
        f"the final mean losses {report['rank']:.2f}",
    ]
    if order["pairs"]:
        lines.append(
            f"worth of order, {order['pairs']} pairs: seen {order['seen']:.4f} nats, predicted "
            f"{order['predicted']:.4f} (mean absolute difference of the same mixtures in either "
            "order)"
        )
    return [*lines, f"world: {report['world']}"]
