"""The whole study in a folder: runs, merges, analysis, pictures; each part is done once.

::

    config.yaml          the complete configuration, with versions
    rows.json            what the rows are known again by
    base/                the model that every run starts from
    run-0/, run-1/, ...  the runs (see mixgym.trainer.orders.runs)
    controls/NAME/run-0/ further sets of runs
    merged/              the merges (see mixgym.trainer.orders.merges)
    position_loss.csv    run, sample, position in the first epoch, final loss
    analysis.json        the effect of the position, with its controls
    *.png                pictures
    summary.json         losses of every model and merge; written last
"""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, RunError
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.random_streams import stream
from mixgym.trainer.config import RunConfig, dump_config, load_config
from mixgym.trainer.merging.held_out import load_weights
from mixgym.trainer.orders import plots
from mixgym.trainer.orders.analysis import PositionEffect, position_effect
from mixgym.trainer.orders.merges import (
    BASE,
    BFLOAT16,
    FLOAT32,
    Merged,
    merge_all,
    rounded_losses,
)
from mixgym.trainer.orders.plane import Kind
from mixgym.trainer.orders.runs import MODEL, RunRecord, train_run
from mixgym.trainer.orders.shared_setup import Setting, StudySetup
from mixgym.trainer.runs.folder import CONFIG, FINISHED, SUMMARY

ANALYSIS, POSITIONS, ROWS = "analysis.json", "position_loss.csv", "rows.json"
_MATTERS = {"seed", "sources", "data", "model", "training", "orders"}  # parts of a configuration
_GROWS = ("runs", "controls")  # keys of `orders` that may change when a study is gone on with

Tell = Callable[[str], None]


def study(config: RunConfig, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Run the study, or go on with it: what is finished in the folder is not done again.

    Args:
        config: what to run; ``run.dir`` is the folder.
        tell: called with a line at each part.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        RunError: if the folder holds something else.
        ConfigError: if it holds a study under another configuration, or on other rows.
        DivergenceError: if a run diverges.
    """
    folder = Path(config.run.dir)
    _check_folder(folder, config)
    setup = StudySetup(config)  # before anything is written: a mistake leaves no folder behind
    _prepare(folder, config, setup)
    main, *controls = settings(config)
    learner = setup.learner(main)
    base = _base(setup, learner, folder)
    runs = _runs(setup, main, folder, tell)
    others = {c.name: _runs(setup, c, folder / "controls" / c.name, tell) for c in controls}
    tell("merging and measuring")
    merges = merge_all(setup, learner, folder, runs)
    rows = _table(setup, learner, base, runs, merges)
    effects = _analysed(setup, runs, others)
    _leave(setup, folder, base, runs, others, merges, effects)
    summary = _summary(setup, folder, rows, effects)
    storage.write_json(folder / SUMMARY, summary)
    return summary


def settings(config: RunConfig) -> list[Setting]:
    """The main set of runs and the controls that are asked for.

    One control trains at a constant rate without warm-up: under a warm-up, what comes first is
    trained on with tiny steps. The other one shuffles what the main set does not.
    """
    kind = config.orders.kind
    other: Kind = "positions" if kind == "samples" else "samples"
    known = {
        "constant-rate": Setting("constant-rate", kind, constant=True),
        "other-kind": Setting(other, other),
    }
    return [Setting("", kind), *(known[name] for name in config.orders.controls)]


def _check_folder(folder: Path, config: RunConfig) -> None:
    """Refuse a folder that holds another study, or something else."""
    if (folder / CONFIG).is_file():
        _check_same(config, load_config(folder / CONFIG), folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: is not empty and no study; choose another folder (--out)")


def _prepare(folder: Path, config: RunConfig, setup: StudySetup) -> None:
    """Make the folder, or go on with it if its sources have not changed since.

    Raises:
        RunError: if it cannot be made.
        ConfigError: if the rows are others.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder"
        ) from None
    storage.clean(folder)
    file = folder / ROWS
    now = {"fingerprint": setup.fingerprint, "samples": len(setup.rows), "steps": setup.steps}
    if file.is_file() and storage.read_json(file) != now:
        raise ConfigError(
            f"{folder}: its sources hold other rows than when the study was started; restore them, "
            "or choose another folder (--out)"
        )
    storage.write_text(folder / CONFIG, dump_config(config))
    storage.write_json(file, now)


def _check_same(config: RunConfig, had: RunConfig, folder: Path) -> None:
    asked, before = config.model_dump(include=_MATTERS), had.model_dump(include=_MATTERS)
    for key in _GROWS:
        before["orders"][key] = asked["orders"][key]
    for section, value in asked.items():
        if value == before[section]:
            continue
        if isinstance(value, dict) and isinstance(before[section], dict):
            names = [name for name in value if value[name] != before[section].get(name)]
            section = f"{section}.{(names or list(before))[0]}"
        raise ConfigError(
            f"{folder}: holds a study with another {section}; give the configuration that it was "
            "started with, or another folder (--out)"
        )


def _base(setup: StudySetup, learner: CausalLM, folder: Path) -> dict[str, float]:
    """Save and measure the model that every run starts from."""
    file = folder / "base.json"
    if not (folder / BASE).is_dir():
        with storage.atomic_folder(folder / BASE) as temporary:
            learner.save_model(temporary)
    if not file.is_file():
        load_weights(learner, folder / BASE)
        storage.write_json(file, {s: setup.mean(learner.evaluate(s)) for s in ("select", "test")})
    found: dict[str, float] = storage.read_json(file)
    return found


def _runs(setup: StudySetup, setting: Setting, folder: Path, tell: Tell) -> list[RunRecord]:
    found = []
    for run in range(setup.config.orders.runs):
        tell(
            f"{setting.name or 'run'} {run + 1} of {setup.config.orders.runs}: {setup.steps} steps"
        )
        found.append(train_run(setup, setting, run, folder / f"run-{run}"))
    return found


def _table(
    setup: StudySetup,
    learner: CausalLM,
    base: dict[str, float],
    runs: Sequence[RunRecord],
    merges: Sequence[Merged],
) -> list[dict[str, Any]]:
    """Losses of the base, each run, their mean and each merge, in both precisions."""
    rows = [_line("base", FLOAT32, base["select"], base["test"])]
    rows += [
        _line(f"run {k}", FLOAT32, run.validation[-1][1], run.test) for k, run in enumerate(runs)
    ]
    rounded = [rounded_losses(setup, learner, run) for run in runs]
    singles = {
        FLOAT32: [(row["select"], row["test"]) for row in rows[1:]],
        BFLOAT16: [(row["select"], row["test"]) for row in rounded],
    }
    for precision, losses in singles.items():
        select, test = np.mean(np.array(losses), axis=0)
        rows.append(_line("mean of the runs", precision, float(select), float(test)))
        rows += [
            _line(m.name, precision, m.select, m.test, m.zero_share)
            for m in merges
            if m.step == setup.steps and m.precision == precision
        ]
    return rows


def _line(
    name: str, precision: str, select: float, test: float | None, zeros: float | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "select": select,
        "test": test,
        "zero_share": zeros,
    }


def _analysed(
    setup: StudySetup, runs: Sequence[RunRecord], others: dict[str, list[RunRecord]]
) -> dict[str, PositionEffect]:
    """The effect of the position in the first epoch, and its controls by name.

    ``last epoch`` takes the position in the last epoch instead; ``held-out`` gives rows that were
    never trained on random positions, and must show nothing; the rest are further sets of runs.
    """
    bins, seed = setup.config.orders.bins, setup.config.seed

    def effect(losses: list[Any], places: list[Any]) -> PositionEffect:
        return position_effect(np.stack(losses), np.stack(places), bins=bins, seed=seed)

    found = {"first epoch": effect([r.losses for r in runs], [r.first for r in runs])}
    if setup.config.orders.epochs > 1:
        found["last epoch"] = effect([r.losses for r in runs], [r.last for r in runs])
    if len(setup.held_out):
        count = len(setup.held_out)
        pseudo = [
            stream(seed, "orders", "pseudo", str(k)).permutation(count) / count
            for k in range(len(runs))
        ]
        found["held-out"] = effect([r.held_out for r in runs], pseudo)
    for name, records in others.items():
        found[name] = effect([r.losses for r in records], [r.first for r in records])
    return found


def _leave(
    setup: StudySetup,
    folder: Path,
    base: dict[str, float],
    runs: Sequence[RunRecord],
    others: dict[str, list[RunRecord]],
    merges: Sequence[Merged],
    effects: dict[str, PositionEffect],
) -> None:
    """Write tables, analysis and pictures."""
    storage.write_text(folder / POSITIONS, _position_csv(setup, runs))
    for name, records in others.items():
        storage.write_text(folder / "controls" / name / POSITIONS, _position_csv(setup, records))
    storage.write_json(folder / ANALYSIS, {k: e.to_dict() for k, e in effects.items()})
    pictures = {
        "position_loss.png": plots.effect_figure(effects),
        "validation.png": plots.validation_figure(base["select"], runs, merges),
        "anchor.png": plots.anchor_figure(runs[0], merges, setup.config.orders.bins),
    }
    for name, figure in pictures.items():
        storage.write_bytes(folder / name, plots.png(figure))


def _position_csv(setup: StudySetup, runs: Sequence[RunRecord]) -> str:
    """A line per run and sample."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "sample", "position", "final_loss"])
    for k, run in enumerate(runs):
        for name, place, loss in zip(setup.rows.names, run.first, run.losses, strict=True):
            writer.writerow([k, name, f"{place:.6f}", f"{loss:.6f}"])
    return text.getvalue()


def _summary(
    setup: StudySetup, folder: Path, rows: list[dict[str, Any]], effects: dict[str, PositionEffect]
) -> dict[str, Any]:
    orders = setup.config.orders
    return {
        "status": FINISHED,
        "kind": orders.kind,
        "runs": orders.runs,
        "samples": len(setup.rows),
        "epochs": orders.epochs,
        "steps": setup.steps,
        "models": rows,
        "effects": {
            name: {
                "slope": vars(effect.slope),
                "gap": vars(effect.gap),
                "pearson": effect.pearson,
                "spearman": effect.spearman,
            }
            for name, effect in effects.items()
        },
        "run_models": [str(folder / f"run-{k}" / MODEL) for k in range(orders.runs)],
        "csv": str(folder / POSITIONS),
    }
