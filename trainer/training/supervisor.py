"""What watches over a training: curves, validation, the best agent, checkpoints."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from mixgym.agents.policies.composed import load_agent
from mixgym.agents.requires import RULE
from mixgym.agents.rules import Uniform
from mixgym.envs import storage
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA
from mixgym.envs.learners.kinds import CAUSAL_LM, CURVES
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.training.global_random_state import global_streams, set_global_streams
from mixgym.trainer.training.learner_group import LearnerGroup
from mixgym.trainer.training.outcome import StageOutcome
from mixgym.trainer.training.training_envs import TrainingEnv, trained_in
from mixgym.trainer.training.training_log import EpisodeRewards, TensorBoardScalars, pending
from mixgym.trainer.training.training_options import Split
from mixgym.trainer.training.validation import LanguageJudge, TaskScores, score

AGENT, TWIN, LAST = "agent", "twin", "last"
"""The best agent by validation, what the learners were made as, and what they were at the end."""

STAGE = 10**9  # more than the decisions of a stage
TRAINING, WORLD, LEARNERS = "training.json", "world", "learners"


class Supervisor:
    """Validates between decisions, keeps the best agent, saves checkpoints, logs every decision.

    The best agent is the one with the lowest loss by who judges the stage: the validation tasks of
    the fast world, or fine-tuning runs of the language model. A later stage starts from the best
    agent of the one before, which is judged again and stays until it is beaten.

    Args:
        run: the run's folder.
        world: what is trained in.
        group: who is trained.
        stage: number and name of the stage.
        output: where the curves are written.
        loggers: of the group, whose waiting values belong in a checkpoint.
        before: what became of the stages before, kept in every checkpoint.

    Attributes:
        leg: number of the leg of the stage.
        until: steps of its learner at which the leg ends; None: not yet begun.
    """

    def __init__(
        self,
        run: RunFolder,
        world: TrainingEnv,
        group: LearnerGroup,
        stage: tuple[int, str],
        output: TensorBoardScalars,
        loggers: dict[str, Logger],
        before: Sequence[StageOutcome] = (),
    ) -> None:
        self._run = run
        self._world = world
        self._group = group
        self._index, self._stage = stage
        self._output = output
        self._loggers = loggers
        self._before = before
        self._best = np.inf
        self._validated = 0
        self._saved = 0
        self.leg = 0
        self.until: int | None = None
        self._uniform: TaskScores | None = None
        self._judge = make_judge(run.config, self._stage)
        self._episodes = EpisodeRewards(world.env.num_envs, names=self._stage != CURVES)
        world.env.watch = self._watch

    @property
    def decisions(self) -> int:
        """Decisions taken in this stage."""
        return self._world.env.decisions

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._best = state["best"] if state["best"] is not None else np.inf
        self._validated = state["validated"]
        self._saved = self.decisions
        self._episodes.set_state(state["episodes"])
        self._output.set_state(state["scalars"])
        self.leg, self.until = state["leg"], state["until"]

    def _watch(
        self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]
    ) -> None:
        for tag, value in self._episodes.take(rewards, dones, infos).items():
            self._write(tag, value)

    def between(self) -> None:
        """Validate and save where it is due; called while no rollout is under way."""
        if self.decisions - self._validated >= self._evaluate_every:
            self.validate()
        if self.decisions - self._saved >= self._save_every:
            self._saved = self.decisions
            self._run.save_checkpoint(self._index * STAGE + self.decisions, self._save)

    @property
    def _evaluate_every(self) -> int:
        train = self._run.config.train
        fast = self._stage == CURVES
        return train.evaluate_every if fast else train.language_evaluate_every

    @property
    def _save_every(self) -> int:
        return min(self._run.config.train.save_every, self._evaluate_every)

    def admit(self) -> None:
        """Judge what the stage starts from, its frozen twin or an agent: it stays until beaten."""
        self._best = self._judged()
        if not (self._run.path / AGENT).exists():
            export_agent(self._run, self._group, AGENT, {"decisions": 0, "stage": self._stage})

    def validate(self) -> None:
        """Judge the agent, and keep it if it is the best so far."""
        self._validated = self.decisions
        found = self._judged()
        if found < self._best:
            self._best = found
            card = {"decisions": self.decisions, "stage": self._stage}
            export_agent(self._run, self._group, AGENT, card)

    def finish(self) -> None:
        """Judge the agent at the end of the stage, and keep it as it is, good or not."""
        if self._validated < self.decisions:
            self.validate()
        card = {"decisions": self.decisions, "stage": self._stage}
        export_agent(self._run, self._group, LAST, card)

    def _judged(self) -> float:
        """The loss that decides which agent is the best; training goes on as if unjudged."""
        streams = global_streams()
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / AGENT
                self._group.export(folder, {})
                mean = self._validated_fast(folder)
                return mean if self._judge is None else self._validated_slow(folder)
        finally:
            set_global_streams(streams)

    def _validated_fast(self, folder: Path) -> float:
        config = self._run.config
        found = score_agent(folder, config)
        if self._uniform is None:
            self._uniform = score_rule(Uniform(), config)
        mean = float(found.mean.mean())
        self._write("validation/mean_nll", mean)
        self._write("validation/worst_excess", float(found.worst.mean()))
        gain = float((self._uniform.mean - found.mean).mean())
        self._write("validation/gain_over_uniform", gain)
        return mean

    def _validated_slow(self, folder: Path) -> float:
        assert self._judge is not None
        mean = self._judge.score_folder(folder)
        self._write("validation/language_nll", mean)
        self._write("validation/language_gain_over_prior", self._judge.prior() - mean)
        return mean

    def _write(self, tag: str, value: float) -> None:
        # at once: the learners' loggers would write it a rollout later
        self._output.scalars.add(tag, value, self.decisions)

    def _save(self, folder: Path) -> None:
        self._output.writer.flush()
        self._group.save(folder / LEARNERS)
        (folder / WORLD).mkdir()
        self._world.save(folder / WORLD)
        state = {
            "stage": self._index,
            "leg": self.leg,
            "until": self.until,
            "validated": self._validated,
            "best": self._best if np.isfinite(self._best) else None,
            "pending": {level: pending(logger) for level, logger in self._loggers.items()},
            "streams": global_streams(),
            "episodes": self._episodes.state(),
            "scalars": self._output.scalars.state(),
            "outcomes": [outcome.plain() for outcome in self._before],
        }
        (folder / TRAINING).write_text(json.dumps(state))


class Between(BaseCallback):
    """Calls somebody before every rollout of a learner that runs its own loop.

    That is the one moment at which nothing but parameters, streams and the world is held.

    Args:
        between: who is called.
    """

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__()
        self._between = between

    def _on_rollout_start(self) -> None:
        self._between()

    def _on_step(self) -> bool:
        return True


def make_judge(config: RunConfig, stage: str) -> LanguageJudge | None:
    """Who judges agents on the language model, where that is wanted."""
    runs = config.train.language_validations
    if stage == CURVES or runs == 0:
        return None
    return LanguageJudge(trained_in(config, CAUSAL_LM), runs)


def score_agent(folder: Path, config: RunConfig, tasks: Split = "validation") -> TaskScores:
    """The agent in a folder on a set of tasks of the fast world."""
    predict = load_agent(folder, shape=(MAX_SOURCES, MAX_STRATA)).predict
    return score(predict, trained_in(config, CURVES).environment, config.train.tasks(tasks))


def score_rule(rule: Any, config: RunConfig, tasks: Split = "validation") -> TaskScores:
    """A rule on a set of tasks of the fast world."""
    options = environment_for(RULE, config, learner=CURVES).environment
    return score(rule.predict, options, config.train.tasks(tasks))


def export_agent(run: RunFolder, group: LearnerGroup, name: str, card: dict[str, Any]) -> None:
    """Write what the group have learnt as an agent of the run."""
    train, environment = run.config.train, run.config.environment
    known = {
        "algorithm": train.algo,
        "seed": run.config.seed,
        "action": environment.action,
        "step": environment.step,
        "floor": environment.floor,
        "reach": environment.reach,
        **({"prior": environment.prior} if isinstance(environment.prior, str) else {}),
        **({"level_of_training": train.level} if train.level != "joint" else {}),
        **({"local_algorithm": train.local_algo} if train.local_algo else {}),
    }
    with storage.atomic_folder(run.path / name) as temporary:
        group.export(temporary, {**known, **card})
