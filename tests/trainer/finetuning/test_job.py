"""Runs that are done in turn in one process are those of fresh processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.learners import corpus as corpus_module
from mixgym.envs.learners.corpus import keep_last_corpus
from mixgym.trainer.finetuning.job import finetune_job
from mixgym.trainer.runs.jobs import run_jobs, values_of

from ..conftest import Make

AGENTS = ("exp3", "proportional")


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    keep_last_corpus(False)
    yield
    keep_last_corpus(False)


def test_runs_in_turn_equal_those_of_fresh_processes(
    make_config: Make,
    remains: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[int] = []
    load = corpus_module._load
    monkeypatch.setattr(
        corpus_module, "_load", lambda options, dry: (loads.append(1), load(options, dry))[1]
    )
    configs = {
        where: [make_config(f"{where}-{agent}", agent={"name": agent}) for agent in AGENTS]
        for where in ("here", "fresh")
    }
    for where, processes in (("here", 1), ("fresh", 2)):
        jobs = [finetune_job(config.run.dir, config) for config in configs[where]]
        values_of(run_jobs(jobs, processes=processes), "")
    assert len(loads) == 1, "the second run in turn found the rows of the first"
    for mine, theirs in zip(*configs.values(), strict=True):
        assert remains(Path(mine.run.dir)) == remains(Path(theirs.run.dir))
