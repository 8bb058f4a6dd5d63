"""A corpus that is kept is the one that would be read again, and is read again where it is not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.build import load_corpus
from mixgym.envs.learners.corpus import Corpus, corpus_key, keep_last_corpus
from mixgym.envs.options import WorldOptions


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    keep_last_corpus()
    yield
    keep_last_corpus(False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", 30)


def write(path: Path, count: int) -> Path:
    lines = [json.dumps({"prompt": f"{i} + 1", "completion": str(i + 1)}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def options(path: Path, **more: Any) -> WorldOptions:
    sections = {"data": {"max_length": 64, "strata": 2}, **more}
    return WorldOptions.model_validate({"sources": {"sums": {"path": str(path)}}, **sections})


def tokens(corpus: Corpus) -> list[int]:
    return [int(t) for rows in corpus.sources[0].splits.values() for t in rows.tokens]


def test_the_same_rows_are_read_once(rows: Path) -> None:
    first = load_corpus(options(rows))
    again = load_corpus(options(rows, training={"learning_rate": 0.1}, model={"init_seed": 3}))
    assert again is first
    keep_last_corpus(False)
    fresh = load_corpus(options(rows))
    assert fresh is not first
    assert tokens(fresh) == tokens(first)
    assert load_corpus(options(rows)) is not fresh, "nothing is kept any more"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": {"max_length": 32, "strata": 2}},
        {"data": {"max_length": 64, "strata": 2, "held_out_rows": 1}},
        {"model": {"name": "1m"}, "data": {"max_length": 64, "strata": 2}},
        {"environment": {"step_rule": "bilevel"}},
    ],
)
def test_what_a_corpus_depends_on_makes_another(rows: Path, change: dict[str, Any]) -> None:
    assert corpus_key(options(rows, **change)) != corpus_key(options(rows))


def test_grades_depend_on_the_whole_model(rows: Path) -> None:
    graded = {"data": {"max_length": 64, "strata": 2, "strata_by": "loss"}}
    keys = {corpus_key(options(rows, model={"init_seed": seed}, **graded)) for seed in (0, 1)}
    assert len(keys) == 2


def test_files_that_changed_are_read_again(rows: Path) -> None:
    first = load_corpus(options(rows))
    write(rows, 31)
    longer = load_corpus(options(rows))
    assert len(longer.sources[0].splits["train"]) > len(first.sources[0].splits["train"])
    os.utime(rows, ns=(1, 1))
    assert load_corpus(options(rows)) is not longer
