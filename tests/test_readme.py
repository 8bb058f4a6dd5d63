"""The README's commands run, its code runs, and its tables are those of the code.

``python tests/test_readme.py`` writes the tables anew.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mixgym.trainer.config import RunConfig
from mixgym.trainer.runs.tensorboard import TAGS
from mixgym.trainer.training.training_log import TAGS as TRAINING_TAGS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted key, default and meaning of every option."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else json.dumps(field.default)
        yield f"{prefix}{name}", default, field.description or _choices(kind)
        for inner in _models_in(kind):
            yield from keys(inner, f"{prefix}{name}.NAME.")


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    for part in typing.get_args(kind):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
        yield from _models_in(part)


def _choices(kind: Any) -> str:
    """What a field without a description takes, as far as its type says so."""
    branches = [kind, *typing.get_args(kind)]
    words = [
        str(word)
        for branch in branches
        if typing.get_origin(branch) is typing.Literal
        for word in typing.get_args(branch)
    ]
    is_open = any(typing.get_origin(branch) is dict for branch in branches)
    return ", ".join([*words, *(["or a mapping by source name"] if is_open else [])])


def tables() -> dict[str, str]:
    """The generated parts of the README by name."""
    rows = [f"| `{key}` | `{default}` | {text} |" for key, default, text in keys(RunConfig)]
    tags = [f"| `{tag}` | {text} |" for tag, text in {**TAGS, **TRAINING_TAGS}.items()]
    return {
        "keys": "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]),
        "tags": "\n".join(["| tag | meaning |", "|---|---|", *tags]),
    }


def with_tables(text: str) -> str:
    for name, table in tables().items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        text, count = re.subn(
            pattern, lambda match, t=table: f"{match[1]}{t}\n{match[2]}", text, flags=re.DOTALL
        )
        assert count == 1, name
    return text


def blocks() -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_tables_are_those_of_the_code() -> None:
    text = README.read_text()
    assert text == with_tables(text), "run: python tests/test_readme.py"


def commands(program: str) -> list[list[str]]:
    lines = [line for kind, block in blocks() if kind == "bash" for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] == program]


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    subprocess.run([*words, "-n"], cwd=ROOT, check=True, capture_output=True)


def test_every_block_is_known() -> None:
    programs = {
        shlex.split(line)[0] for kind, block in blocks() if kind == "bash"
        for line in block.splitlines()
    }  # fmt: skip
    assert programs == {"make", "mixgym"}
    assert {kind for kind, _ in blocks()} == {"bash", "python", "yaml"}


def test_the_tour(tmp_path: Path) -> None:
    for kind, block in blocks():
        if kind == "yaml":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
        elif kind == "python":
            run(tmp_path, "-W", "error::DeprecationWarning:mixgym", "-c", block)
        else:
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                if program == "mixgym":
                    run(tmp_path, "-m", "mixgym", *arguments)
    assert (tmp_path / "runs" / "uniform" / "summary.json").is_file()


def run(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "MIXGYM_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
