"""TensorBoard records of agent training: Stable-Baselines3's tags, and what episodes were paid.

All tags are against decisions of the joint environment, whatever a learner counts as its steps.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger

from mixgym.trainer.runs.varying_scalars import VaryingScalars

OWN = ("train/", "rollout/", "time/", "eval/")
_EPISODE = "episode/reward/"

TAGS = {
    "episode/reward/global": "return of an episode of the joint level, mean over those that end",
    "episode/reward/local/<source>": "the same of a source's own pay; in the fast world ``mean``",
    "episode/reward/components/<name>": "a part that rewards are made of, summed over the episode",
    "validation/<name>": "loss on the validation tasks, or on the select split of a language model",
    "agent/<level>/<tag>": "Stable-Baselines3's tags of one of several learners",
}
"""Tags of agent training besides Stable-Baselines3's own, with their meaning."""


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
        self.scalars = VaryingScalars(self.writer)
        self.clock = clock
        self._folder = folder

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the numbers among ``key_values``; see ``KVWriter``."""
        now = step if self.clock is None else self.clock()
        for tag, value in key_values.items():
            if isinstance(value, int | float) or getattr(value, "ndim", None) == 0:
                self.scalars.add(tag, float(value), now)
        self.writer.flush()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of :attr:`scalars` at a checkpoint."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self.writer.flush()
        found = EventAccumulator(str(self._folder), size_guidance={"scalars": 0})
        found.Reload()  # what is purged keeps its name and has no points
        written = [tag for tag in found.Tags()["scalars"] if found.Scalars(tag)]
        self.scalars.set_state(state, written)

    def close(self) -> None:
        """Write what was recorded only once, and close the file."""
        self.scalars.finish()
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


class EpisodeRewards:
    """What episodes were paid: means over those that end together, under ``episode/reward/*``.

    Within an episode rewards fall as the loss does, so that curves of single decisions are
    sawteeth; a whole episode's are what training is to raise.

    Args:
        count: environments.
        names: whether sources have names that last, as those of a language model's environment do;
            in the fast world they change with every task, and their mean is written.
    """

    def __init__(self, count: int, *, names: bool) -> None:
        self._names = names
        self._sums: list[dict[str, float]] = [{} for _ in range(count)]

    def take(
        self, rewards: NDArray[Any], dones: NDArray[Any], infos: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Book a decision of all environments.

        Args:
            rewards: float[n], of the joint level.
            dones: bool[n], where an episode ends with it.
            infos: of the environments; one without a record diverged.

        Returns:
            Tag -> mean over the episodes that end now, of which there may be none.
        """
        ended = []
        for index, (reward, done, info) in enumerate(zip(rewards, dones, infos, strict=True)):
            sums = self._sums[index]
            for name, value in self._paid(float(reward), info):
                sums[name] = sums.get(name, 0.0) + value
            if done:
                ended.append(sums)
                self._sums[index] = {}
        tags = dict.fromkeys(name for sums in ended for name in sums)
        return {
            f"{_EPISODE}{tag}": float(np.mean([sums[tag] for sums in ended if tag in sums]))
            for tag in tags
        }

    def _paid(self, reward: float, info: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield "global", reward
        if "decision" not in info:
            return
        record = info["decision"]["reward"]
        for name, value in record["components"].items():
            yield f"components/{name}", float(value)
        local = {name: float(v) for name, v in record["local"].items() if np.isfinite(v)}
        if self._names:
            yield from ((f"local/{name}", value) for name, value in local.items())
        elif local:
            yield "local/mean", float(np.mean(list(local.values())))

    def state(self) -> list[dict[str, float]]:
        """Plain data from which :meth:`set_state` continues."""
        return [dict(sums) for sums in self._sums]

    def set_state(self, state: list[dict[str, float]]) -> None:
        """Continue from :meth:`state`."""
        self._sums = [dict(sums) for sums in state]


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
