"""``mixgym finetune``: one fine-tuning run under a schedule, killed and resumed at will.

Of several processes (torchrun), rank 0 decides and keeps the run's folder; the others follow it
through the same decisions and write nothing.
"""

import io
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs import storage
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.learners.base import Evaluation
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.exact_match import exact_match
from mixgym.envs.ranks import from_first, part, rank
from mixgym.envs.rewards import target_mean
from mixgym.envs.sources.source import warnings_of
from mixgym.envs.spaces.rendering import render_rgb
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.finetuning.assembly import Assembly, assemble
from mixgym.trainer.runs.folder import CONFIG, FINISHED, RunFolder
from mixgym.trainer.runs.recorder import (
    AGENT,
    ENVIRONMENT,
    SECONDS,
    Follower,
    ProgressBar,
    Recorder,
)
from mixgym.trainer.runs.tables import finetune_table, show
from mixgym.trainer.runs.tensorboard import RunWriter
from mixgym.trainer.runs.world_record import leave_world

MODEL, PICTURE = "model", "mixture.png"
_ENDLESS = sys.maxsize // 2  # decisions: the episode ends the run


@dataclass
class _Outcome:
    """What the end of the episode measured, while the fine-tuned model was there."""

    test_before: Evaluation | None = None
    test_after: Evaluation | None = None
    select_after: Evaluation | None = None
    history: list[list[float]] = field(default_factory=list)
    exact: dict[str, float] = field(default_factory=dict)


def finetune_command(
    config: RunConfig, *, resume: bool = False, json_output: bool = False
) -> dict[str, Any]:
    """Run, and print the table of the outcome unless JSON is wanted."""
    quiet_transformers()
    if rank() > 0:
        follow(config, resume=resume)
        part()
        return {}
    summary = finetune(config, resume=resume, progress=True)
    part()
    if not json_output:
        show(finetune_table(summary))
    return summary


def finetune(config: RunConfig, *, resume: bool = False, progress: bool = False) -> dict[str, Any]:
    """One fine-tuning run.

    Args:
        config: what to run; on resume the folder's own configuration counts, and ``config`` only
            says which folder.
        resume: continue the run in ``config.run.dir`` from its last checkpoint.
        progress: show a bar on standard error.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        DivergenceError: at a non-finite loss; the message names step, shares and checkpoint.
        MixgymError: for anything else that is wrong with the input.
    """
    run = RunFolder.open(config.run.dir) if resume else RunFolder.create(config.run.dir, config)
    if resume:
        _check_same(config, run)
        if run.finished:
            return run.read_summary() or {}
    outcome = _Outcome()
    try:
        assembly = assemble(run.config, lambda env, info: _finish(env, outcome, run))
    except Exception:
        if not resume:  # nothing was trained: leave no folder behind that looks like a run
            storage.remove_folder(run.path)
        raise
    warnings = _source_warnings(assembly, run.config)
    for line in warnings if progress else ():
        sys.stderr.write(f"warning: {line}\n")
    _restore(assembly, run)
    leave_world(run.path, assembly.env, run.config)
    known = run.read_decisions() if resume else None
    writer = RunWriter(run.tensorboard, known) if run.config.run.tensorboard else None
    recorder = Recorder(run, assembly.env, writer)
    bar = ProgressBar(assembly.env, disable=not progress)
    try:
        assembly.agent.learn(_ENDLESS, callback=[recorder, bar], reset_num_timesteps=False)
        summary = {**_summary(run, assembly, outcome), "warnings": warnings}
        _leave(run, assembly, outcome, writer, summary)
    except DivergenceError as error:
        failure = f"{error}; {_last_good(run)}"
        run.write_summary({"status": "diverged", "failure": failure})
        raise DivergenceError(failure) from error
    finally:
        bar.close()
        if writer is not None:
            writer.close()
    return summary


def _source_warnings(assembly: Assembly, config: RunConfig) -> list[str]:
    """What should be known of the sources of a run, if its learner has any."""
    sources = getattr(assembly.env.world.learner, "sources", ())
    return warnings_of(sources, config.data.held_out_rows)


def follow(config: RunConfig, *, resume: bool = False) -> None:
    """The part of a rank other than 0: the same decisions and training, and no records.

    Args:
        config: as for :func:`finetune`.
        resume: as for :func:`finetune`; the folder has to be in reach of every rank.

    Raises:
        DivergenceError: at a non-finite loss, as on every rank.
        MixgymError: for anything else that is wrong with the input.
    """
    if resume:
        run = RunFolder(Path(config.run.dir), load_config(Path(config.run.dir) / CONFIG))
        if run.finished:
            return
        config = run.config
    outcome = _Outcome()
    assembly = assemble(config, lambda env, info: _finish(env, outcome))
    _restore(assembly)
    assembly.agent.learn(_ENDLESS, callback=[Follower()], reset_num_timesteps=False)


def _check_same(config: RunConfig, run: RunFolder) -> None:
    """Refuse to resume under another configuration than the run was started with."""
    asked, had = _leaves(config.model_dump()), _leaves(run.config.model_dump())
    asked["run.dir"] = had["run.dir"]
    changed = [key for key in had | asked if asked.get(key) != had.get(key)]
    if changed:
        key = changed[0]
        others = f" (and {', '.join(changed[1:])})" if changed[1:] else ""
        raise ConfigError(
            f"{run.path}: --resume continues the run as it was started, with {key} = "
            f"{had.get(key)}, not {asked.get(key)}{others}: leave it as in config.yaml, or start "
            "a new run in another folder"
        )


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted key."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and value
        found |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _last_good(run: RunFolder) -> str:
    latest = run.latest_checkpoint()
    where = (
        f"the last good checkpoint is {latest[1]} (decision {latest[0]})"
        if latest
        else "there is no checkpoint yet"
    )
    return f"{where}; lower training.learning_rate"


def _restore(assembly: Assembly, run: RunFolder | None = None) -> None:
    """Go back to the last checkpoint, or to the start; what was recorded later is cut."""
    latest = from_first(run.latest_checkpoint() if run else None)
    if latest is None:
        if run:
            run.cut_decisions(0)
        assembly.agent.begin(assembly.vector.reset())
        return
    decision, folder = latest
    if run:
        run.cut_decisions(decision)
        run.prune(newest=decision)  # a kill may have come between saving and pruning
    observation = assembly.env.load(folder / ENVIRONMENT)
    assembly.agent.set_memory(json.loads((folder / AGENT).read_text())["memory"])
    assembly.agent.begin(_batched(observation), decision)


def _batched(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: values[None] for name, values in observation.items()}
    return observation[None]


def _finish(env: MixtureEnv, outcome: _Outcome, run: RunFolder | None = None) -> None:
    """Inside the last step: measure the test split, save the model, measure the base model."""
    learner = env.world.learner
    outcome.history = list(env.progress.history or [])
    outcome.test_after = learner.evaluate("test")
    outcome.select_after = learner.evaluate("select")
    save_model = getattr(learner, "save_model", None)
    if run and run.config.run.keep_model and save_model is not None:
        with storage.atomic_folder(run.path / MODEL) as temporary:
            save_model(temporary)
    if run and run.config.run.exact_match and isinstance(learner, CausalLM):
        outcome.exact = exact_match(learner, "test", run.config.run.exact_match)
    learner.reset()
    outcome.test_before = learner.evaluate("test")


def _summary(run: RunFolder, assembly: Assembly, outcome: _Outcome) -> dict[str, Any]:
    world = assembly.env.world
    records = run.read_decisions()
    before, after, select = outcome.test_before, outcome.test_after, outcome.select_after
    assert before is not None
    assert after is not None
    assert select is not None
    last = records[-1]
    supervised = (
        np.array([[r["share"].get(name, 0.0) for name in world.names] for r in records])
        * np.diff([0, *(r["supervised_tokens"] for r in records)])[:, None]
    )
    shares = supervised.sum(0) / max(supervised.sum(), 1e-9)
    # from the records: they span every process that worked on the run
    seconds = {name: sum(r["time"][name] for r in records) for name in SECONDS}
    measured = seconds["measure_seconds"]
    busy = measured + seconds["plan_seconds"] + seconds["train_seconds"]
    model = run.path / MODEL
    return {
        "status": FINISHED,
        "agent": run.config.agent.name,
        "model": str(model) if model.is_dir() else None,
        "decisions": last["decision"],
        "steps": last["steps"],
        "supervised_tokens": last["supervised_tokens"],
        "return": float(sum(r["reward"]["global"] for r in records)),
        "test": {
            "mean_before": target_mean(before.source_nll, world.targets),
            "mean_after": target_mean(after.source_nll, world.targets),
            "worst_after": worst(after.source_nll, world.targets),
        },
        "select": _judged(select.source_nll, world.targets),
        "sources": {
            name: {
                "target": float(world.targets[k]),
                "share": float(shares[k]),
                "epochs": last["epochs"].get(name, 0.0),
                "test_before": _number(before.source_nll[k]),
                "test_after": _number(after.source_nll[k]),
                "select_after": _number(select.source_nll[k]),
                "reward_after": last["loss"]["reward"].get(name),
            }
            for k, name in enumerate(world.names)
        },
        "exact": outcome.exact,
        "cost": last["cost"],
        "time": {
            **seconds,
            "measured_share": measured / max(busy, 1e-9),
            "tokens_per_cpu_second": last["cost"]["train_tokens"]
            / max(seconds["cpu_seconds"], 1e-9),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    }


def _judged(nll: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and worst of the targets; None where no target has rows in the split."""
    if not (np.isfinite(nll) & (targets > 0)).any():
        return {"mean_after": None, "worst_after": None}
    return {"mean_after": target_mean(nll, targets), "worst_after": worst(nll, targets)}


def worst(nll: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """The largest NLL among the sources that are targets."""
    used = (targets > 0) & np.isfinite(nll)
    return float(nll[used].max())


def _leave(
    run: RunFolder,
    assembly: Assembly,
    outcome: _Outcome,
    writer: RunWriter | None,
    summary: dict[str, Any],
) -> None:
    """Leave picture and hyper-parameters, and the summary last: it marks the run as finished."""
    picture = render_rgb(assembly.env.world.names, np.array(outcome.history))
    if run.config.run.keep_model:
        storage.write_bytes(run.path / PICTURE, png(picture))
    if writer is not None:
        writer.image("mixture", picture, summary["decisions"])
        writer.hparams(
            {
                "agent": run.config.agent.name,
                "model": run.config.model.name,
                "seed": run.config.seed,
                "interval": run.config.training.interval,
                "learning_rate": run.config.training.learning_rate,
            },
            {
                "rollout/ep_rew_mean": summary["return"],
                "test/mean": summary["test"]["mean_after"],
                "test/worst": summary["test"]["worst_after"],
            },
        )
    run.write_summary(summary)


def png(picture: NDArray[np.uint8]) -> bytes:
    """The picture, uint8[height, width, 3], as a PNG file."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, picture, format="png")
    return file.getvalue()


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def quiet_transformers() -> None:
    """Keep the terminal for the run: no advice and no loading bars from transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
