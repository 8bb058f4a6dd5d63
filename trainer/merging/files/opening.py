"""Opening a model folder: whole weights, or an adapter on top of its base."""

from pathlib import Path

from mixgym.trainer.merging.errors import MergeError, require_posix
from mixgym.trainer.merging.files.adapter import open_adapter
from mixgym.trainer.merging.files.checkpoint import Checkpoint
from mixgym.trainer.merging.files.folder import ADAPTER_CONFIG, FolderCheckpoint


def open_checkpoint(path: str, base: str | None = None) -> Checkpoint:
    """Open a model folder, or an adapter folder on top of its base.

    Args:
        path: A folder on this machine.
        base: Where the base of an adapter lies, if not where its configuration says.

    Raises:
        MergeError: Naming the model, the file and the fix.
    """
    require_posix()
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MergeError(
            f"model {path} is not a folder; download a hub model first, for example with "
            "`hf download NAME --local-dir FOLDER`"
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return open_adapter(folder, path, base)
    return FolderCheckpoint(folder, path)
