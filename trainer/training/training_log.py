"""TensorBoard records of agent training: Stable-Baselines3's tags, and every decision's reward.

All tags are against decisions of the joint environment, whatever a learner counts as its steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger

OWN = ("train/", "rollout/", "time/", "eval/")


class TensorBoardScalars(KVWriter):
    """Writes scalars; a resumed training purges what a killed one recorded later.

    Args:
        folder: of the event files.
        purge: first step that will be written (again); later ones of a killed training vanish.
        clock: decisions so far, in place of the steps that a learner counts.
    """

    def __init__(self, folder: Path, purge: int, clock: Callable[[], int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=purge)
        self.clock = clock

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the numbers among ``key_values``; see ``KVWriter``."""
        now = step if self.clock is None else self.clock()
        for tag, value in key_values.items():
            if isinstance(value, int | float) or getattr(value, "ndim", None) == 0:
                self.writer.add_scalar(tag, float(value), now)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class LevelScalars(KVWriter):
    """The tags of one of several learners: ``train/loss`` becomes ``agent/<level>/train/loss``.

    Args:
        output: where they are written.
        level: of the learner.
        main: whether ``rollout/*`` and ``time/*`` of the training are this learner's.
    """

    def __init__(self, output: TensorBoardScalars, level: str, *, main: bool) -> None:
        self._output = output
        self._level = level
        self._own = ("train/",) if main else OWN

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write under the level's tags; see ``KVWriter``."""
        named = {
            f"agent/{self._level}/{tag}" if tag.startswith(self._own) else tag: value
            for tag, value in key_values.items()
        }
        self._output.write(named, key_excluded, step)

    def close(self) -> None:
        """Nothing: the output is shared."""


def level_loggers(output: TensorBoardScalars, levels: tuple[str, ...]) -> dict[str, Logger]:
    """A logger for each learner; the first is the one whose episodes are logged.

    A learner of both levels keeps Stable-Baselines3's tags as they are.
    """
    if levels == ("joint",):
        return {"joint": Logger(None, [output])}
    return {
        level: Logger(None, [LevelScalars(output, level, main=level == levels[0])])
        for level in levels
    }


def log_rewards(
    output: TensorBoardScalars, infos: list[dict[str, Any]], mean: float, names: bool
) -> None:
    """Write what a decision of all environments was paid.

    Args:
        output: where.
        infos: of the environments; one without a record diverged.
        mean: of the joint rewards.
        names: whether sources have names that last, as those of a language model's environment do;
            in the fast world they change with every task, and their mean is written.
    """
    assert output.clock is not None
    step = output.clock()
    output.writer.add_scalar("reward/global", mean, step)
    rewards = [info["decision"]["reward"] for info in infos if "decision" in info]
    if not rewards:
        return
    for name in rewards[0]["components"]:
        parts = [reward["components"][name] for reward in rewards]
        output.writer.add_scalar(f"reward/components/{name}", float(np.mean(parts)), step)
    local = [(name, value) for reward in rewards for name, value in reward["local"].items()]
    known = [(name, float(value)) for name, value in local if np.isfinite(value)]
    if names:
        for name, value in known:
            output.writer.add_scalar(f"reward/local/{name}", value, step)
    elif known:
        mean_local = float(np.mean([value for _, value in known]))
        output.writer.add_scalar("reward/local/mean", mean_local, step)


def pending(logger: Logger) -> dict[str, Any]:
    """Values that were recorded and wait for the next dump, as plain data."""
    return {
        "values": {name: float(value) for name, value in logger.name_to_value.items()},
        "counts": dict(logger.name_to_count),
    }


def set_pending(logger: Logger, state: dict[str, Any]) -> None:
    """Continue from :func:`pending`."""
    for name, value in state["values"].items():
        logger.record(name, value)
    logger.name_to_count.update(state["counts"])
