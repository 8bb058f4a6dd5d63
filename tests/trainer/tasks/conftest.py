"""A small pool: seven sources in three formats and two depths, one of them of noise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mixgym.trainer.tasks.pool import Pool, find_pool


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(word: str, start: int, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{word} {i}?", "completion": f"{word} is {i}"} for i in range(start, count)]


def talks(word: str, start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [
            {"role": "user", "content": f"{word} {i}"}, {"role": "assistant", "content": f"= {i}"}
        ]}
        for i in range(start, count)
    ]  # fmt: skip


def fill(root: Path) -> Path:
    for word in ("sums", "odes", "maps"):
        for role, start, end in (("train", 0, 200), ("valid", 200, 240), ("test", 240, 280)):
            write(root / "inner" / word / f"{role}.jsonl", pairs(word, start, end))
    write(root / "talk" / "train.jsonl", talks("talk", 0, 300))
    write(root / "noise" / "train.jsonl", pairs("junk", 0, 100))
    write(root / "plain.jsonl", [{"text": f"once upon {i} times"} for i in range(120)])
    write(root / "said.jsonl", talks("said", 0, 90))
    return root


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def pool(root: Path) -> Pool:
    return find_pool(root)
