"""Whose tokenizer and chat template a merge takes over, and whether they fit its embedding.

An adapter that was saved with a tokenizer of its own (a grown vocabulary, another chat template)
speaks that one, not its base's. No weights are read here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixgym.trainer.merging.errors import MergeError

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
)
_EXTRAS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)
_STATE_OF_USE = ("truncation", "padding")


class Speaker(Protocol):
    """A model as far as its tokenizer goes."""

    @property
    def label(self) -> str:
        """How messages call it."""

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of its tokenizer."""

    @property
    def own_folder(self) -> Path:
        """The folder that was saved when it was trained; an adapter's own."""


def marks(folder: Path) -> dict[str, str]:
    """Return tokenizer file -> hash, without the padding and truncation last in use."""
    return {
        name: hashlib.sha256(_content(folder / name)).hexdigest()
        for name in _FILES
        if (folder / name).is_file()
    }


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.name != "tokenizer.json":
        return raw
    try:
        parsed: Any = json.loads(raw)
    except ValueError:
        return raw
    if isinstance(parsed, dict):
        parsed = {key: value for key, value in parsed.items() if key not in _STATE_OF_USE}
    return json.dumps(parsed, sort_keys=True).encode()


def donor_of(models: Sequence[Speaker], chosen: str | None) -> Path | None:
    """Return the folder whose tokenizer the merge takes over, None for no tokenizer.

    Args:
        models: The donor first.
        chosen: The recipe's ``tokenizer_from``: a model, a folder or ``none``.

    Raises:
        MergeError: If tokenizers differ and none was chosen.
    """
    if chosen == "none":
        return None
    if chosen is not None:
        named = next((m.tokenizer_folder for m in models if m.label == chosen), None)
        folder = named or Path(chosen).expanduser()
        if not marks(folder):
            raise MergeError(
                f"tokenizer_from {chosen}: no tokenizer there; name a model that has one"
            )
        return folder
    marked = [(m, found) for m in models if (found := marks(m.tokenizer_folder))]
    for model, found in marked[1:]:
        first, expected = marked[0]
        for name in sorted(found.keys() & expected.keys()):
            if found[name] != expected[name]:
                raise MergeError(
                    f"{name} differs between model {first.label} and model {model.label}; merge "
                    "models of one tokenizer, or pass --tokenizer-from MODEL if you know that "
                    "their tokens agree"
                )
    return marked[0][0].tokenizer_folder if marked else None


def template_warnings(models: Sequence[Speaker], tokenizer: Path) -> list[str]:
    """Return a warning for each model whose chat template is not the one that is copied."""
    copied = _chat_template(tokenizer)
    return [
        f"the chat template of model {model.label} is not that of {tokenizer}, which is copied; "
        f"pass --tokenizer-from {model.label} to take over its own"
        for model in models
        if _chat_template(model.own_folder) not in (None, copied)
    ]


def _chat_template(folder: Path) -> Any:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads((folder / name).read_text("utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return found
    return None


def check_rows(tokenizer: Path | None, label: str, rows: int | None) -> None:
    """Refuse a tokenizer with tokens that the embedding has no row for.

    Args:
        tokenizer: Its folder, if there is one.
        label: The adapter that it comes from.
        rows: Of the embedding; None if there is none.

    Raises:
        MergeError: Naming both numbers.
    """
    last = None if tokenizer is None else _largest_id(tokenizer)
    if rows is not None and last is not None and last >= rows:
        raise MergeError(
            f"model {label}: its tokenizer has the token {last}, and its embedding {rows} rows: "
            "the added rows were not saved with the adapter; save it again with "
            "save_embedding_layers=True, or pass --tokenizer-from its base"
        )


def _largest_id(folder: Path) -> int | None:
    """The largest token id in tokenizer.json; None if it cannot be told."""
    try:
        parsed = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        vocabulary = parsed["model"]["vocab"]
        added = [int(token["id"]) for token in parsed.get("added_tokens") or []]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    own = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else [len(vocabulary) - 1]
    return max([*added, *map(int, own)], default=None)


def files_of(tokenizer: Path | None) -> dict[str, Path]:
    """Return the name -> source of every file of a tokenizer."""
    if tokenizer is None:
        return {}
    found = {name: tokenizer / name for name in (*_FILES, *_EXTRAS)}
    return {name: path for name, path in found.items() if path.is_file()}
