"""``mixgym train``: train a scheduling agent over many episodes, and keep the best one."""

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from mixgym.agents.policies.export import (
    ExportedPolicy,
    acting_weights,
    export_policy,
    load_weights,
)
from mixgym.agents.rules import Proportional, Uniform
from mixgym.envs.errors import ConfigError
from mixgym.trainer import storage
from mixgym.trainer.algorithms import (
    load_algorithm,
    log_interval,
    make_algorithm,
    save_algorithm,
    suited,
)
from mixgym.trainer.config import RunConfig
from mixgym.trainer.runs import FINISHED, RunFolder
from mixgym.trainer.streams import global_streams, set_global_streams
from mixgym.trainer.tables import show
from mixgym.trainer.training_log import TensorBoardScalars, make_logger, pending, set_pending
from mixgym.trainer.validation import TaskScores, comparison, score, task_table
from mixgym.trainer.worlds import TrainingWorld, agent_options, make_world

AGENT, TWIN = "agent", "twin"
STAGE = 10**9  # more than the decisions of a stage
TRAINING, WORLD, START = "training.json", "world", "start"


def train_command(
    config: RunConfig, *, resume: bool = False, json_output: bool = False
) -> dict[str, Any]:
    """Train, and print the validation table unless JSON is wanted."""
    summary = train(config, resume=resume, progress=True)
    if not json_output:
        show(validation_table(summary), f"agent: {summary['agent']}")
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
    config = suited(config)
    run = RunFolder.open(config.run.dir) if resume else RunFolder.create(config.run.dir, config)
    if run.finished:
        return run.read_summary() or {}
    torch.set_num_threads(config.model.threads)
    saved = _saved(run)
    for index, stage in enumerate(run.config.train.stages):
        if saved is not None and index < saved.state["stage"]:
            continue
        try:
            _train_stage(run, index, stage, saved, progress=progress)
        except ConfigError:
            if not resume and run.latest_checkpoint() is None:
                storage.remove_folder(run.path)  # nothing was trained
            raise
        saved = None
    summary = _summary(run)
    run.write_summary(summary)
    return summary


@dataclass(frozen=True)
class _Saved:
    """A checkpoint: between two rollouts, or the start of a later stage."""

    folder: Path
    state: dict[str, Any]

    @property
    def is_start(self) -> bool:
        return (self.folder / START).is_dir()


def _saved(run: RunFolder) -> _Saved | None:
    latest = run.latest_checkpoint()
    if latest is None:
        return None
    run.prune(newest=latest[0])  # a kill may have come between saving and pruning
    return _Saved(latest[1], storage.read_json(latest[1] / TRAINING))


def _train_stage(
    run: RunFolder, index: int, stage: str, saved: _Saved | None, *, progress: bool
) -> None:
    config = run.config
    world = make_world(stage, config)
    if index > 0 and saved is None:
        saved = _save_start(run, index)
    if saved is None or saved.is_start:
        algorithm = make_algorithm(config, world.env, stage=stage)
        if saved is not None:
            load_weights(algorithm.policy, saved.folder / START)  # type: ignore[arg-type]
            saved = None
        elif not (run.path / TWIN).exists():
            _export(run, algorithm, TWIN, {"decisions": 0})
    else:
        algorithm = load_algorithm(saved.folder, world.env, config)
        world.load(saved.folder / WORLD)  # after the algorithm, which seeds its environment anew
    done = algorithm.num_timesteps
    folder = run.tensorboard / "training" / f"{index}-{stage}"
    logger, output = make_logger(folder, done + 1)
    algorithm.set_logger(logger)
    keeper = Keeper(run, world, index, output)
    if saved is not None:
        keeper.load(saved.state)
        set_pending(logger, saved.state["pending"])
        set_global_streams(saved.state["streams"])
    total = config.train.decisions if stage == "curves" else config.train.language_decisions
    hooks: list[BaseCallback] = [keeper, *([_Bar()] if progress else [])]
    algorithm.learn(
        max(total - done, 0),
        callback=CallbackList(hooks),
        log_interval=log_interval(algorithm),
        reset_num_timesteps=saved is None,
    )
    keeper.validate()
    logger.dump(algorithm.num_timesteps)
    output.close()


def _save_start(run: RunFolder, index: int) -> _Saved:
    """Keep what a later stage starts from: its first validation replaces the agent."""

    def write(folder: Path) -> None:
        shutil.copytree(run.path / AGENT, folder / START)
        (folder / TRAINING).write_text(json.dumps({"stage": index}))

    folder = run.save_checkpoint(index * STAGE, write)
    return _Saved(folder, {"stage": index})


class _Bar(ProgressBarCallback):
    """Stable-Baselines3's bar, without tqdm's remark that its look may change."""

    def _on_training_start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super()._on_training_start()


class Keeper(BaseCallback):
    """Validates between rollouts, keeps the best agent, saves checkpoints, logs every decision.

    Args:
        run: the run's folder.
        world: what is trained in.
        stage: its number.
        output: where every decision's reward is written.
    """

    def __init__(
        self, run: RunFolder, world: TrainingWorld, stage: int, output: TensorBoardScalars
    ) -> None:
        super().__init__()
        self._run = run
        self._world = world
        self._stage = stage
        self._output = output
        self._rollouts = 0
        self._validated = 0
        self._best = np.inf
        self._entered: int | None = None
        self._uniform: TaskScores | None = None

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._rollouts = state["rollouts"]
        self._validated = state["validated"]
        self._best = state["best"] if state["best"] is not None else np.inf

    def _on_training_start(self) -> None:
        self._entered = self.num_timesteps

    def _on_step(self) -> bool:
        rewards = np.asarray(self.locals["rewards"], np.float64)
        self._output.writer.add_scalar("reward/global", float(rewards.mean()), self.num_timesteps)
        first = self.locals["infos"][0].get("decision")
        if first is not None:
            for name in first["reward"]["components"]:
                values = [i["decision"]["reward"]["components"][name] for i in self._decided()]
                self._output.writer.add_scalar(
                    f"reward/components/{name}", float(np.mean(values)), self.num_timesteps
                )
        return True

    def _decided(self) -> list[dict[str, Any]]:
        return [info for info in self.locals["infos"] if "decision" in info]

    def _on_rollout_start(self) -> None:
        """The one moment at which nothing but parameters, streams and the world is held."""
        if self.num_timesteps == self._entered:
            return
        self._rollouts += 1
        if self.num_timesteps - self._validated >= self._run.config.train.evaluate_every:
            self.validate()
        if self._rollouts % self._run.config.train.save_every == 0:
            step = self._stage * STAGE + self.num_timesteps
            self._run.save_checkpoint(step, self._save)

    def validate(self) -> None:
        """Score the agent on the validation tasks, and keep it if it is the best so far."""
        self._validated = self.num_timesteps
        options = agent_options(self._run.config.environment, padded=False)
        found = score(_policy_of(self.model, options), options)
        if self._uniform is None:
            self._uniform = _rule_scores(Uniform(), self._run.config)
        mean = float(found.mean.mean())
        scalars = {
            "validation/mean_nll": mean,
            "validation/worst_excess": float(found.worst.mean()),
            "validation/gain_over_uniform": float((self._uniform.mean - found.mean).mean()),
        }
        for tag, value in scalars.items():  # the logger would write them a rollout later
            self._output.writer.add_scalar(tag, value, self.num_timesteps)
        if mean < self._best:
            self._best = mean
            _export(self._run, self.model, AGENT, {"decisions": self.num_timesteps})

    def _save(self, folder: Path) -> None:
        self._output.writer.flush()
        save_algorithm(self.model, folder)
        (folder / WORLD).mkdir()
        self._world.save(folder / WORLD)
        state = {
            "stage": self._stage,
            "rollouts": self._rollouts,
            "validated": self._validated,
            "best": self._best if np.isfinite(self._best) else None,
            "pending": pending(self.logger),
            "streams": global_streams(),
        }
        (folder / TRAINING).write_text(json.dumps(state))


def _policy_of(algorithm: BaseAlgorithm, options: Any) -> Any:
    """The algorithm's policy in the fast world's spaces, whatever spaces it is trained in."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        export_policy(algorithm.policy, Path(name), {})  # type: ignore[arg-type]
        from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA

        return ExportedPolicy(Path(name), shape=(MAX_SOURCES, MAX_STRATA)).predict


def _rule_scores(rule: Any, config: RunConfig, tasks: str = "validation") -> TaskScores:
    options = agent_options(config.environment, padded=False).model_copy(
        update={"action": "weights", "observation": "dict"}
    )
    return score(rule.predict, options, tasks)


def _export(run: RunFolder, algorithm: BaseAlgorithm, name: str, card: dict[str, Any]) -> None:
    environment = run.config.environment
    with storage.atomic_folder(run.path / name) as temporary:
        export_policy(
            algorithm.policy,  # type: ignore[arg-type]
            temporary,
            {
                "algorithm": run.config.train.algo,
                "seed": run.config.seed,
                "floor": environment.floor,
                "reach": environment.reach,
                "action": environment.action,
                **card,
            },
        )


def task_rows(run: RunFolder, tasks: str) -> list[dict[str, Any]]:
    """The agent of a run, its frozen twin and two rules on a set of tasks of the fast world."""
    from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA

    options = agent_options(run.config.environment, padded=False)
    scores = {"uniform": _rule_scores(Uniform(), run.config, tasks)}
    for label, name in (("agent", AGENT), ("frozen twin", TWIN)):
        policy = ExportedPolicy(run.path / name, shape=(MAX_SOURCES, MAX_STRATA))
        scores[label] = score(policy.predict, options, tasks)
    scores["proportional"] = _rule_scores(Proportional(), run.config, tasks)
    return comparison(scores)


def _summary(run: RunFolder) -> dict[str, Any]:
    card = storage.read_json(run.path / AGENT / "policy.json")
    return {
        "status": FINISHED,
        "algorithm": run.config.train.algo,
        "agent": str(run.path / AGENT),
        "best_at_decision": card["decisions"],
        "parameters_changed": parameters_changed(run.path / TWIN, run.path / AGENT),
        "validation": task_rows(run, "validation"),
    }


def parameters_changed(before: Path, after: Path) -> bool:
    """Whether the acting network of one exported policy differs from that of another."""
    old, new = acting_weights(before), acting_weights(after)
    return any(not torch.equal(old[name], new[name]) for name in old)


def validation_table(summary: dict[str, Any]) -> Any:
    """The validation rows of a summary for the terminal."""
    return task_table(summary["validation"], "validation")
