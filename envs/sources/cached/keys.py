"""What an entry of the cache is made of, as a name: contents of files, options, tokenizer, code."""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mixgym.envs.sources.cached.shelf import Shelf

LEAST_BYTES = 1 << 18
"""Sources of smaller files are read and encoded anew: that takes less than a second."""


def key_of(kind: str, parts: Any) -> str:
    """A name for a file that stands for plain data and for our code.

    Args:
        kind: of the entry, which the name begins with.
        parts: plain data.
    """
    text = json.dumps([_code(), parts], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:40]}"


def file_digest(path: Path) -> str:
    """A digest of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """``$MIXGYM_CACHE``, or ``mixgym`` in the user's cache folder; it may not be there yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mixgym"
    return Path(os.environ.get("MIXGYM_CACHE", default))


def folder_of(cache: str | None) -> Path | None:
    """The folder that ``data.cache`` names; None for none."""
    if cache is None:
        return None
    return cache_folder() if cache == "auto" else Path(cache).expanduser()


def shelf_for(folder: Path | None, files: Iterable[Path]) -> Shelf | None:
    """Where what is made of some files is kept; None if it is not.

    Args:
        folder: of the cache; None: nothing is kept.
        files: that something is made of.
    """
    if folder is None or sum(path.stat().st_size for path in files) < LEAST_BYTES:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        return None
    return Shelf(folder / "rows") if os.access(folder, os.W_OK) else None


@cache
def own_folder() -> Path:
    """A folder that goes with the process."""
    folder = tempfile.mkdtemp(prefix="mixgym-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _code() -> str:
    """A digest of the modules that read and encode: what they made before a change is not found."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(f"{path.name}\x00".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def versions() -> tuple[str, ...]:
    """Versions of the libraries that tokens depend on."""
    from importlib.metadata import version

    return tuple(version(name) for name in ("tokenizers", "transformers", "jinja2", "numpy"))


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that a fast tokenizer does to a text, chat template included."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    told = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    more = [type(tokenizer).__name__, tokenizer.chat_template, told]
    digest.update(json.dumps(more, sort_keys=True, default=str).encode())
    return digest.hexdigest()
