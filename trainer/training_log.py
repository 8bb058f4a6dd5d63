"""TensorBoard records of agent training: Stable-Baselines3's tags, and every decision's reward."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger


class TensorBoardScalars(KVWriter):
    """Writes scalars; a resumed training purges what a killed one recorded later.

    Args:
        folder: of the event files.
        purge: first step that will be written (again); later ones of a killed training vanish.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the numbers among ``key_values``; see ``KVWriter``."""
        for tag, value in key_values.items():
            if isinstance(value, int | float) or getattr(value, "ndim", None) == 0:
                self.writer.add_scalar(tag, float(value), step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


def make_logger(folder: Path, purge: int) -> tuple[Logger, TensorBoardScalars]:
    """A Stable-Baselines3 logger that writes to TensorBoard only."""
    output = TensorBoardScalars(folder, purge)
    return Logger(str(folder), [output]), output


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
