"""The folder of a run: its configuration, decisions, checkpoints and summary.

::

    config.yaml          the complete configuration, with versions
    world.json           what was there before the first (mixgym.trainer.runs.world_record)
    decisions.jsonl      one line per decision, appended as it is taken
    checkpoints/step-N/  all that is needed to go on after N decisions
    tensorboard/         curves (see mixgym.trainer.runs.tensorboard)
    summary.json         how the run ended

Every write is atomic (:mod:`mixgym.envs.storage`), so that a run can be killed at any instant
and resumed. What a checkpoint holds is its writer's business, not this module's. Floats read back
exactly; NaN and the infinities, which JSON lacks, are written as ``null``.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixgym.envs import storage
from mixgym.envs.errors import RunError
from mixgym.trainer.config import RunConfig, dump_config, load_config

CONFIG = "config.yaml"
DECISIONS = "decisions.jsonl"
SUMMARY = "summary.json"
_CHECKPOINTS = "checkpoints"
_TENSORBOARD = "tensorboard"
_MANIFEST = "checkpoint.json"
FINISHED = "finished"


class RunFolder:
    """One run on disk.

    Attributes:
        path: the folder.
        config: what the run was started with.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> "RunFolder":
        """Start a new run.

        Args:
            path: the folder to make; may exist if it is empty.
            config: written to ``config.yaml`` at once.

        Raises:
            RunError: if the folder already holds something, or cannot be made.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be made ({error.strerror}); choose another folder"
            ) from None
        present = sorted(entry.name for entry in path.iterdir())
        if CONFIG in present:
            raise RunError(
                f"{path}: holds a run already; pass --resume to continue it, or choose another "
                "folder (run.dir, --out)"
            )
        if [name for name in present if not name.startswith(storage.TEMPORARY_PREFIX)]:
            raise RunError(
                f"{path}: is not empty (it holds {present[0]}) and not a run; choose another "
                "folder (run.dir, --out)"
            )
        storage.clean(path)
        storage.write_text(path / CONFIG, dump_config(config))
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run, first tidying what a killed process left half done.

        Raises:
            RunError: if there is no run in the folder.
            ConfigError: if its configuration was edited into something invalid.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise RunError(f"{path}: holds no run (no {CONFIG}); start one without --resume")
        storage.clean(path)
        storage.clean(path / _CHECKPOINTS)
        return cls(path, load_config(path / CONFIG))

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard records."""
        return self.path / _TENSORBOARD

    def append_decision(self, record: Mapping[str, Any]) -> None:
        """Add one decision to ``decisions.jsonl``.

        Args:
            record: what :func:`mixgym.envs.storage.plain` can convert.
        """
        storage.append_line(self.path / DECISIONS, storage.json_text(record))

    def read_decisions(self) -> list[dict[str, Any]]:
        """All decisions so far; a last line that a kill tore is left out.

        Raises:
            RunError: if any other line cannot be read.
        """
        lines, is_torn = self._lines()
        whole = lines[: len(lines) - is_torn]
        return [self._parsed(line, number) for number, line in enumerate(whole, 1)]

    def cut_decisions(self, count: int) -> None:
        """Keep the first ``count`` decisions: those that a checkpoint knows of.

        Later lines, and one that a kill tore, are dropped silently: they will be taken again.

        Raises:
            RunError: if fewer than ``count`` decisions can be read.
        """
        lines, is_torn = self._lines()
        whole = len(lines) - is_torn
        if whole < count:
            problem = "is torn" if is_torn and whole + 1 == count else "is missing"
            raise RunError(
                f"{self.path / DECISIONS}:{whole + 1}: {problem}, but the checkpoint is at "
                f"decision {count}; restore the file, or start again in another folder"
            )
        for number, line in enumerate(lines[:count], 1):
            self._parsed(line, number)
        if len(lines) > count:
            storage.write_bytes(self.path / DECISIONS, b"".join(lines[:count]))

    def save_checkpoint(self, decision: int, write: Callable[[Path], None]) -> Path:
        """Save ``checkpoints/step-N`` and drop all but the newest ``run.keep_last``.

        Args:
            decision: decisions taken so far, the N of the name.
            write: fills the folder that it is given.

        Returns:
            The finished checkpoint.
        """
        folder = self.path / _CHECKPOINTS
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{decision}"
        with storage.atomic_folder(path) as temporary:
            write(temporary)
            manifest = {"decision": decision, "files": _sizes(temporary)}
            storage.write_json(temporary / _MANIFEST, manifest)
        self.prune(newest=decision)
        return path

    def prune(self, newest: int) -> None:
        """Remove all but ``run.keep_last`` checkpoints, and any beyond ``newest``.

        Args:
            newest: decisions of the checkpoint that the run stands at; later ones are of a run that
                was set back.
        """
        kept = 0
        for decision, path in sorted(self._checkpoints(), reverse=True):
            if decision <= newest and kept < self.config.run.keep_last:
                kept += 1
            else:
                storage.remove_folder(path)

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Number of decisions and folder of the newest complete checkpoint.

        A checkpoint whose files are not those of its manifest (say, after an interrupted copy) is
        passed over.
        """
        for decision, path in sorted(self._checkpoints(), reverse=True):
            if _is_complete(path):
                return decision, path
        return None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``; ``status: finished`` marks a run that has nothing left to do."""
        storage.write_json(self.path / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """What :meth:`write_summary` wrote, if it did."""
        path = self.path / SUMMARY
        if not path.is_file():
            return None
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        summary = self.read_summary()
        return summary is not None and summary.get("status") == FINISHED

    def _lines(self) -> tuple[list[bytes], bool]:
        """Lines of ``decisions.jsonl`` with their ends, and whether the last one is torn."""
        path = self.path / DECISIONS
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return lines, bool(lines) and not lines[-1].endswith(b"\n")

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RunError(
                f"{self.path / DECISIONS}:{number}: not JSON ({error}); restore the file, or start "
                "again in another folder"
            ) from None
        if not isinstance(record, dict):
            raise RunError(f"{self.path / DECISIONS}:{number}: {record!r} is not a decision")
        return record

    def _checkpoints(self) -> list[tuple[int, Path]]:
        folder = self.path / _CHECKPOINTS
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        matches = [match for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
        return [(int(match[1]), folder / match[0]) for match in matches]


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below ``folder``, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _MANIFEST
    }


def _is_complete(checkpoint: Path) -> bool:
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest["files"] == _sizes(checkpoint))
