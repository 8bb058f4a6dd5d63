"""``mixgym train``: train a scheduling agent over many episodes, and keep the best one."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from mixgym.agents.policies.composed import load_agent, policy_folders
from mixgym.agents.policies.export import acting_weights, read_card
from mixgym.agents.registry import training_of
from mixgym.agents.rules import Proportional, Uniform
from mixgym.envs import storage
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import CURVES
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.reports.controls import controlled_score
from mixgym.trainer.runs.folder import FINISHED, RunFolder
from mixgym.trainer.runs.tables import show
from mixgym.trainer.training.algorithms import (
    decisions_per_round,
    log_interval,
    training_needs,
    updates_of,
    whole_rounds,
)
from mixgym.trainer.training.global_random_state import set_global_streams
from mixgym.trainer.training.learner_group import LearnerGroup
from mixgym.trainer.training.outcome import StageOutcome, notes
from mixgym.trainer.training.supervisor import (
    AGENT,
    LAST,
    LEARNERS,
    STAGE,
    TRAINING,
    TWIN,
    WORLD,
    Between,
    Supervisor,
    export_agent,
    make_judge,
    score_agent,
    score_rule,
)
from mixgym.trainer.training.training_envs import make_training_env, trained_in
from mixgym.trainer.training.training_log import TensorBoardScalars, level_loggers, set_pending
from mixgym.trainer.training.training_options import Split
from mixgym.trainer.training.validation import Controls, TaskScores, comparison, task_table

OTHER, START = "other", "start"


def train_command(
    config: RunConfig, *, resume: bool = False, json_output: bool = False
) -> dict[str, Any]:
    """Train, and print the validation table unless JSON is wanted."""
    summary = train(config, resume=resume, progress=True)
    if not json_output:
        show(validation_table(summary), f"agent: {summary['agent']}")
        show(*(f"note: {sentence}" for sentence in summary["notes"]))
    return summary


def train(config: RunConfig, *, resume: bool = False, progress: bool = False) -> dict[str, Any]:
    """Train an agent stage by stage; ``RUN/agent`` holds the best one by validation.

    Args:
        config: what to train; on resume the folder's own configuration counts.
        resume: continue from the last checkpoint, bit-equal.
        progress: show Stable-Baselines3's bar.

    Returns:
        The summary, as in ``summary.json``: among others the validation table, and whether the
        agent's parameters changed.

    Raises:
        MixgymError: for whatever is wrong with the input.
    """
    if resume:
        run = RunFolder.open(config.run.dir)
    else:
        run = RunFolder.create(config.run.dir, _checked(config))
    if run.finished:
        return run.read_summary() or {}
    torch.set_num_threads(config.model.threads)
    saved = _saved(run)
    outcomes = [] if saved is None else saved.outcomes
    try:
        _keep_other(run)
        for index, stage in enumerate(run.config.train.stages):
            if saved is None or index >= saved.state["stage"]:
                outcomes = outcomes[:index]
                outcomes.append(
                    _train_stage(run, (index, stage), saved, outcomes, progress=progress)
                )
                saved = None
    except ConfigError:
        if not resume and run.latest_checkpoint() is None:
            storage.remove_folder(run.path)  # nothing was trained
        raise
    summary = _summary(run, outcomes)
    run.write_summary(summary)
    return summary


def _checked(config: RunConfig) -> RunConfig:
    """The configuration with the environment that its algorithms act in.

    Raises:
        ConfigError: if one is unknown, or cannot act at the level.
    """
    train = config.train
    config = environment_for(training_needs(config), config)
    if train.level == "joint":
        return config
    training_of(train.local_algo or train.algo)
    if config.environment.action == "nudge":
        raise ConfigError(
            f"train.level={train.level}: {train.algo} nudges one weight of the whole mixture at a "
            "time; take the level joint, or an algorithm with continuous actions"
        )
    return config


def _keep_other(run: RunFolder) -> None:
    """Copy the agent at the level that does not learn: the run has to be complete by itself."""
    name = run.config.train.other
    if name is None or (run.path / OTHER).is_dir():
        return
    folder = Path(name)
    inner = folder / AGENT
    where = inner if inner.is_dir() else folder
    read_card(where)
    with storage.atomic_folder(run.path / OTHER) as temporary:
        shutil.copytree(where, temporary, dirs_exist_ok=True)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint: between two rollouts, or the start of a later stage."""

    folder: Path
    state: dict[str, Any]

    @property
    def outcomes(self) -> list[StageOutcome]:
        """Of the stages before."""
        return [StageOutcome(**outcome) for outcome in self.state["outcomes"]]

    @property
    def start(self) -> Path | None:
        """The agent that the stage starts from, if nothing of it was trained yet."""
        folder = self.folder / START
        return folder if folder.is_dir() else None


def _saved(run: RunFolder) -> _Saved | None:
    latest = run.latest_checkpoint()
    if latest is None:
        return None
    run.prune(newest=latest[0])  # a kill may have come between saving and pruning
    return _Saved(latest[1], storage.read_json(latest[1] / TRAINING))


def _save_start(run: RunFolder, index: int, before: Sequence[StageOutcome]) -> _Saved:
    """Keep what a later stage starts from: what it learns may replace the agent."""
    state = {"stage": index, "outcomes": [outcome.plain() for outcome in before]}

    def write(folder: Path) -> None:
        shutil.copytree(run.path / AGENT, folder / START)
        (folder / TRAINING).write_text(json.dumps(state))

    folder = run.save_checkpoint(index * STAGE, write)
    return _Saved(folder, state)


def _train_stage(
    run: RunFolder,
    stage: tuple[int, str],
    saved: _Saved | None,
    before: Sequence[StageOutcome],
    *,
    progress: bool,
) -> StageOutcome:
    index, name = stage
    config = run.config
    world = make_training_env(name, config)
    other = run.path / OTHER
    group = LearnerGroup(config, world, name, other if other.is_dir() else None)
    if index > 0 and saved is None:
        saved = _save_start(run, index, before)
    continued = saved is not None and saved.start is None
    if saved is not None and continued:
        group.load(saved.folder / LEARNERS)
        world.load(saved.folder / WORLD)  # after the group, who seed their environment anew
    else:
        group.make(None if saved is None else saved.start)
        if saved is None and not (run.path / TWIN).exists():
            export_agent(run, group, TWIN, {"decisions": 0, "stage": name})
    output = TensorBoardScalars(
        run.tensorboard / "training" / f"{index}-{name}",
        world.env.decisions + 1 if continued else 0,
        lambda: world.env.decisions,
    )
    loggers = level_loggers(output, group.levels)
    for level, logger in loggers.items():
        group.learners[level].set_logger(logger)
    supervisor = Supervisor(run, world, group, stage, output, loggers, before)
    if saved is not None and continued:
        supervisor.load(saved.state)
        for level, logger in loggers.items():
            set_pending(logger, saved.state["pending"][level])
        set_global_streams(saved.state["streams"])
    else:
        supervisor.admit()  # the twin, or the agent of the stage before
    total = config.train.decisions if name == CURVES else config.train.language_decisions
    _learn(group, supervisor, config, total, progress=progress)
    supervisor.finish()
    for logger in loggers.values():
        logger.dump(supervisor.decisions)
    output.close()
    updates = {level: updates_of(learner) for level, learner in group.learners.items()}
    return StageOutcome(name, total, supervisor.decisions, updates)


def _learn(
    group: LearnerGroup, supervisor: Supervisor, config: RunConfig, total: int, *, progress: bool
) -> None:
    """Train the group for ``total`` decisions, leg by leg.

    A leg is one ``learn`` of one of them; those that learn together need none.
    """
    bar = [_Bar()] if progress else []
    if group.together is not None:
        group.learn_together(total, supervisor.between, progress=progress)
        return
    legs = config.train.turns if config.train.level == "alternate" else 1
    for leg in range(supervisor.leg, legs):
        level = group.levels[leg % len(group.levels)]
        algorithm = group.learners[level]
        if legs > 1:
            group.freeze(level)
        if supervisor.until is None:
            left = total * (leg + 1) // legs - supervisor.decisions
            supervisor.leg = leg
            round_ = decisions_per_round(algorithm, group.steps_of(level, group.episode))
            steps = whole_rounds(group.steps_of(level, max(left, 0)), round_)
            supervisor.until = algorithm.num_timesteps + steps
            group.forget(level)
        hooks: list[BaseCallback] = [Between(supervisor.between), *bar]
        if supervisor.until > algorithm.num_timesteps:
            algorithm.learn(
                supervisor.until - algorithm.num_timesteps,
                callback=CallbackList(hooks),
                log_interval=log_interval(algorithm),
                reset_num_timesteps=False,
            )
        supervisor.until = None


class _Bar(ProgressBarCallback):
    """Stable-Baselines3's bar, without tqdm's remark that its look may change."""

    def _on_training_start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super()._on_training_start()


def _task_scores(run: RunFolder, tasks: Split) -> dict[str, TaskScores]:
    """The agent of a run, its frozen twin and two rules on a set of tasks of the fast world."""
    scores = {"uniform": score_rule(Uniform(), run.config, tasks)}
    for label, name in (("agent", AGENT), ("frozen twin", TWIN)):
        scores[label] = score_agent(run.path / name, run.config, tasks)
    scores["proportional"] = score_rule(Proportional(), run.config, tasks)
    return scores


def _controls(run: RunFolder) -> dict[str, Controls]:
    """The agent's own decisions on the validation tasks, in other orders."""
    agent = load_agent(run.path / AGENT, shape=(MAX_SOURCES, MAX_STRATA))
    options, tasks = (
        trained_in(run.config, CURVES).environment,
        run.config.train.tasks("validation"),
    )
    return {"agent": controlled_score(agent.predict, options, tasks)[1]}


def _summary(run: RunFolder, outcomes: list[StageOutcome]) -> dict[str, Any]:
    scores = _task_scores(run, "validation")
    card = read_card(run.path / AGENT)
    train = run.config.train
    summary = {
        "status": FINISHED,
        "algorithm": train.algo,
        "level": train.level,
        "agent": str(run.path / AGENT),
        "best_at_decision": card["decisions"],
        "best_in_stage": card["stage"],
        "parameters_changed": parameters_changed(run.path / TWIN, run.path / LAST),
        "stages": [outcome.plain() for outcome in outcomes],
        "validation": comparison(scores, controls=_controls(run)),
        "notes": notes(run.config, outcomes, scores),
    }
    judge = make_judge(run.config, train.stages[-1])
    if judge is not None:
        summary["language_validation"] = {
            "prior": judge.prior(),
            **{name: judge.score_folder(run.path / name) for name in (AGENT, TWIN)},
        }
    return summary


def parameters_changed(before: Path, after: Path) -> bool:
    """Whether the acting networks of one agent differ from those of another."""
    old, new = policy_folders(before), policy_folders(after)
    return old.keys() != new.keys() or any(
        not torch.equal(value, acting_weights(new[place])[name])
        for place, folder in old.items()
        for name, value in acting_weights(folder).items()
    )


def validation_table(summary: dict[str, Any]) -> Any:
    """The validation rows of a summary for the terminal."""
    return task_table(summary["validation"], "validation")
