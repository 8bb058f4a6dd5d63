"""What became of a training, and what has to be said about it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixgym.trainer.config import RunConfig
from mixgym.trainer.training.validation import TaskScores, paired

ERRORS = 2.0  # standard errors that a difference has to exceed


@dataclass(frozen=True)
class StageOutcome:
    """One finished stage.

    Attributes:
        stage: its name.
        asked: decisions that were asked for.
        decisions: that were taken.
        updates: by level, how often its learner changed its parameters.
    """

    stage: str
    asked: int
    decisions: int
    updates: dict[str, int]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def notes(
    config: RunConfig, stages: Sequence[StageOutcome], scores: Mapping[str, TaskScores]
) -> list[str]:
    """Sentences on a training that did not do what was asked, or did not help.

    Args:
        config: of the training.
        stages: all of them.
        scores: of ``agent``, ``frozen twin`` and ``uniform`` on the same tasks.
    """
    found = [note for stage in stages for note in _of_stage(config, stage)]
    for other, beaten in (("frozen twin", "train longer, or with other options"), ("uniform", "")):
        gap, error = paired(scores["agent"], scores[other])
        at_a_loss = gap >= -ERRORS * error if other == "frozen twin" else gap > 0
        if at_a_loss:
            advice = beaten or "do not use it: uniform is simpler and better"
            found.append(
                f"the agent is no better than {other}: {gap:+.4f} nats (s.e. {error:.4f}) on the "
                f"validation tasks; {advice}"
            )
    return found


def _of_stage(config: RunConfig, stage: StageOutcome) -> list[str]:
    algo = config.train.algo
    found = []
    if stage.decisions != stage.asked:
        found.append(
            f"stage {stage.stage}: {stage.asked:,} decisions were asked for, {stage.decisions:,} "
            f"were taken: {algo} learns in whole rounds (see its n_steps, n_delta, environments)"
        )
    for level, updates in stage.updates.items():
        if updates == 0:
            found.append(
                f"stage {stage.stage}: the learner of level {level} was never updated: it learns "
                "after train.options.learning_starts steps only; lower them, or train longer"
            )
    return found
