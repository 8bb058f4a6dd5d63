"""Schedulers on real tasks: paired by task and seed, kept, the same from several processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixgym.envs.errors import ConfigError, RunError
from mixgym.envs.learners.corpus import keep_last_corpus
from mixgym.trainer.cli.main import app
from mixgym.trainer.comparing.entries import TaskChoice, entries, labels_of
from mixgym.trainer.comparing.rows import extra_compute
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.reports.compare import compare

SHORT = ["training.steps=4", "training.interval=2", "training.packs=1", "data.held_out_rows=1"]
SHORT += ["data.held_out_tokens=20", "data.judged_tokens=30", "data.max_length=32"]
AGENTS = ["uniform", "exp3"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    for word in ("sums", "odes", "maps"):
        folder = tmp_path / "pool" / word
        folder.mkdir(parents=True)
        rows = [{"prompt": f"{word} {i}?", "completion": f"{word} is {i}"} for i in range(80)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pool"


def config(folder: Path, *more: str) -> RunConfig:
    return load_config(None, [*SHORT, f"run.dir={folder}", *more])


def test_tasks_are_compared_alike_in_one_process_and_in_two(pool: Path, tmp_path: Path) -> None:
    tasks = TaskChoice("real-test", pool, 2)
    here, there = tmp_path / "here", tmp_path / "there"
    report = compare(config(here), agents=AGENTS, seeds=1, tasks=tasks)
    keep_last_corpus(False)
    other = compare(config(there), agents=AGENTS, seeds=1, tasks=tasks, processes=2)
    assert report["rows"] == other["rows"]
    assert report["leaderboard"] == other["leaderboard"]
    check(report, here)
    times = {path: path.stat().st_mtime_ns for path in here.rglob("summary.json")}
    again = compare(config(here), agents=AGENTS[::-1], seeds=1, tasks=tasks, split="select")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("summary.json")} == times
    assert (again["split"], again["leaderboard"][0]["agent"]) == ("select", "exp3")
    for row in again["rows"]:
        path = here / row["task"] / row["agent"] / "seed-0" / "summary.json"
        assert row["target_mean"] == json.loads(path.read_text())["select"]["mean_after"]


def check(report: dict[str, Any], folder: Path) -> None:
    assert (report["tasks"], report["budget"], report["budget_tokens"]) == (
        "real-test", "tokens", None,
    )  # fmt: skip
    rows = report["rows"]
    assert [(row["task"], row["agent"]) for row in rows] == [
        (f"real-test-000{i}", agent) for i in (0, 1) for agent in AGENTS
    ]
    for row in rows:
        home = folder / row["task"] / row["agent"] / "seed-0"
        assert sorted(path.name for path in home.iterdir()) == [
            "config.yaml", "decisions.jsonl", "summary.json", "world.json",
        ]  # fmt: skip
        summary = json.loads((home / "summary.json").read_text())
        assert row["extra_compute"] == extra_compute(home, summary) == 0
        assert 0 < row["share_to_reference"] <= 1
        assert row["steps"] == 4
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["reached"], "the reference reaches its own loss"
        assert {k for k in first if k.startswith("nll/")} == {
            k for k in second if k.startswith("nll/")
        }
    gaps = [b["target_mean"] - a["target_mean"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    board = report["leaderboard"][1]
    assert board["difference"] == pytest.approx(sum(gaps) / 2)
    assert (board["tasks"], board["pairs"]) == (2, 2)
    assert (folder / "runs.csv").read_text().startswith("task,agent,seed,status")


def test_runs_that_share_rows_stand_side_by_side(pool: Path, tmp_path: Path) -> None:
    tasks = TaskChoice("real-validation", pool, 2)
    found = entries(config(tmp_path / "out", "seed=3"), labels_of(AGENTS), 2, "tokens", tasks)
    assert [(entry.task, entry.seed, entry.agent) for entry in found] == [
        (f"real-validation-000{i}", seed, agent)
        for i in (0, 1) for seed in (3, 4) for agent in AGENTS
    ]  # fmt: skip
    assert all(entry.config.seed == entry.seed == entry.config.model.init_seed for entry in found)
    assert {entry.config.run.dir for entry in found} == {
        str(tmp_path / "out" / entry.task / entry.agent / f"seed-{entry.seed}")
        for entry in found
        if entry.task
    }
    assert found[0].name == "real-validation-0000 uniform seed 3"
    assert not any(e.config.run.keep_model or e.config.run.tensorboard for e in found)
    kept = entries(
        config(tmp_path / "out", "run.keep_model=true"), labels_of(AGENTS), 1, "tokens", tasks
    )
    assert all(entry.config.run.keep_model for entry in kept)


def test_what_goes_wrong_is_told(pool: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["compare", "--agents", "uniform,exp3", "--tasks", "real-tests", "--pool", str(pool)]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out"), *SHORT])
    assert result.exit_code == 2
    assert "did you mean real-test" in result.output
    tasks = TaskChoice("real-test", tmp_path / "absent", 1)
    with pytest.raises(ConfigError, match="no such folder"):
        compare(config(tmp_path / "out"), agents=AGENTS, seeds=1, tasks=tasks)
    broken = config(tmp_path / "out", "data.max_length=8", "data.over_long=error")
    with pytest.raises(RunError, match=r"real-test-0000 uniform seed 0: .*over_long"):
        compare(broken, agents=AGENTS, seeds=1, tasks=TaskChoice("real-test", pool, 1))
