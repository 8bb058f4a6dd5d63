"""What merging raises, and where it cannot run."""

import os
from importlib.util import find_spec

from mixgym.envs.errors import ConfigError, MixgymError


class MergeError(MixgymError):
    """A merge cannot be done as asked: the message names the model, the tensor and the fix."""


class MergeMisuseError(MergeError, ConfigError):
    """A merge is not asked for as it has to be: a missing folder, an unknown method or option."""


def require_posix() -> None:
    """Say that merging needs a POSIX system, where it is not one.

    Files are read at their offsets by several threads, and unfinished output is known by its lock.

    Raises:
        MergeError: This system has no ``fcntl`` or no ``pread``.
    """
    if find_spec("fcntl") is None or not hasattr(os, "pread"):
        raise MergeError(
            "merging needs a POSIX system (fcntl locks and pread), and this is none: run it on "
            "Linux or macOS, or inside WSL"
        )
