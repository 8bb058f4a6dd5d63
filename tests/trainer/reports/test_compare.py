"""Schedulers on equal terms: paired by seed, the same budget, numbers checked by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning import job as job_module
from mixgym.trainer.reports.compare import compare
from mixgym.trainer.reports.leaderboard import PAIRS, interval, leaderboard, leaderboard_table

from ..conftest import Make


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config("compare", training={"steps": 4, "interval": 2, "packs": 2})


def test_runs_are_paired_and_get_the_same_supervised_tokens(config: RunConfig) -> None:
    agents, equal = ["uniform", "proportional"], "supervised_tokens"
    report = compare(config, agents=agents, seeds=2, budget=equal)
    assert (report["budget"], report["budget_tokens"]) == (equal, None)
    folder, budget = Path(config.run.dir), report["budget_supervised_tokens"]
    summaries = {
        (agent, seed): json.loads((folder / agent / f"seed-{seed}" / "summary.json").read_text())
        for agent in agents
        for seed in (0, 1)
    }
    for seed in (0, 1):
        starts = [
            {name: row["test_before"] for name, row in summaries[a, seed]["sources"].items()}
            for a in agents
        ]
        assert starts[0] == starts[1], "the same model and the same splits"
    first, second = summaries["uniform", 0], summaries["uniform", 1]
    assert first["test"]["mean_before"] != second["test"]["mean_before"], "seeds differ"
    used = [row["supervised_tokens"] for row in report["rows"]]
    assert max(used) <= budget
    assert budget - min(used) < 64, "less than the longest row"
    check_numbers(report, folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/summary.json")}
    again = compare(config, agents=agents, seeds=2, budget=equal)
    assert again["leaderboard"] == report["leaderboard"]
    assert kept == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/summary.json")}


def check_numbers(report: dict[str, Any], folder: Path) -> None:
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["agent"], row["seed"]) for row in rows] == [
        ("uniform", "0"), ("proportional", "0"), ("uniform", "1"), ("proportional", "1"),
    ]  # fmt: skip
    for row in rows:
        # noise has target 0: it counts in the plain mean only
        losses = [float(row["nll/addition"]), float(row["nll/noise"])]
        assert float(row["mean"]) == pytest.approx(np.mean(losses))
        assert float(row["target_mean"]) == pytest.approx(losses[0])
        assert float(row["worst"]) == pytest.approx(losses[0])
    mine = [float(row["target_mean"]) for row in rows if row["agent"] == "uniform"]
    other = [float(row["target_mean"]) for row in rows if row["agent"] == "proportional"]
    uniform, proportional = report["leaderboard"]
    assert uniform["target_mean"] == pytest.approx(sum(mine) / 2)
    assert proportional["difference"] == pytest.approx(sum(other) / 2 - sum(mine) / 2)
    gaps = [b - a for a, b in zip(mine, other, strict=True)]
    assert proportional["difference_spread"] == pytest.approx(abs(gaps[0] - gaps[1]) / 2**0.5)
    half = 12.706 * abs(gaps[0] - gaps[1]) / 2  # Student's t with one degree of freedom
    assert proportional["low"] == pytest.approx(np.mean(gaps) - half)
    assert proportional["high"] == pytest.approx(np.mean(gaps) + half)
    assert all(int(row["steps"]) > 0 for row in rows)
    assert uniform["tokens"] == np.mean([int(r["tokens"]) for r in rows if r["agent"] == "uniform"])
    assert (uniform["difference"], uniform["low"], uniform["high"]) == (0, 0, 0)
    assert json.loads((folder / "compare.json").read_text())["leaderboard"] == report["leaderboard"]


def test_equal_compute_is_as_many_steps_of_as_many_tokens(make_config: Make) -> None:
    config = make_config("compare", training={"steps": 6, "interval": 1})
    report = compare(config, agents=["uniform", "proportional", "doge"], seeds=1)
    assert (report["budget"], report["budget_supervised_tokens"]) == ("tokens", None)
    assert report["budget_tokens"] == 6 * 2 * 64
    rows = {row["agent"]: row for row in report["rows"]}
    assert {row["steps"] for row in rows.values()} == {6}
    assert all(384 < row["tokens"] <= 768 for row in rows.values()), "what fits into the packs"
    assert rows["uniform"]["extra_compute"] == rows["proportional"]["extra_compute"] == 0
    doge = rows["doge"]
    assert doge["extra_compute"] == pytest.approx(doge["probe_tokens"] / (3 * doge["tokens"]))
    assert doge["extra_compute"] > 0
    shown = leaderboard_table(report)
    assert "after 768 tokens read" in str(shown.title)
    assert "tokens read (equal)" in [column.header for column in shown.columns]
    assert "extra compute" in [column.header for column in shown.columns]


def test_a_budget_of_supervised_tokens_is_not_equal_compute(make_config: Make) -> None:
    config = make_config("compare", training={"steps": 4, "supervised_tokens": 50})
    with pytest.raises(ConfigError, match="--budget supervised_tokens"):
        compare(config, agents=["uniform", "proportional"], seeds=1)
    config = make_config("compare", training={"steps": 4, "tokens": 300})
    with pytest.raises(ConfigError, match="--budget tokens"):
        compare(config, agents=["uniform", "proportional"], seeds=1, budget="supervised_tokens")


def run(agent: str, seed: int, value: float | None, status: str = "finished") -> dict[str, Any]:
    return {
        "agent": agent, "seed": seed, "status": status, "steps": 10 + seed, "tokens": 100,
        "mean": None if value is None else value + 1, "target_mean": value,
        "worst": None if value is None else 2 * value,
    }  # fmt: skip


def test_the_leaderboard_by_hand() -> None:
    rows = [run("a", 0, 1.0), run("b", 0, 0.5), run("a", 1, 2.0), run("b", 1, 3.0)]
    first, second = leaderboard(rows, ["a", "b"])
    assert first["seeds"] == second["seeds"] == first["pairs"] == second["pairs"] == 2
    assert (first["diverged"], second["diverged"]) == (0, 0)
    assert (second["mean"], second["target_mean"], second["worst"]) == (2.75, 1.75, 3.5)
    assert (second["steps"], second["tokens"]) == (10.5, 100)
    assert second["difference"] == 0.25
    assert second["difference_spread"] == pytest.approx(1.5 / 2**0.5)
    assert second["interval"] == "t"
    alone = leaderboard(rows[:2], ["a", "b"])
    assert alone[1]["spread"] is None
    assert alone[1]["difference_spread"] is None
    assert (alone[1]["low"], alone[1]["high"], alone[1]["interval"]) == (None, None, "none")


def test_a_diverged_run_is_counted_and_takes_no_part() -> None:
    rows = [run("a", 0, 1.0), run("b", 0, None, "diverged"), run("a", 1, 2.0), run("b", 1, 1.5)]
    first, second = leaderboard(rows, ["a", "b"])
    assert (first["diverged"], second["diverged"], second["pairs"]) == (0, 1, 1)
    assert (first["target_mean"], second["target_mean"], second["difference"]) == (1.5, 1.5, -0.5)
    nobody = leaderboard([run("a", 0, 1.0), run("b", 0, None, "diverged")], ["a", "b"])[1]
    assert (nobody["target_mean"], nobody["difference"], nobody["pairs"]) == (None, None, 0)
    board = leaderboard(rows, ["a", "b"])
    report = {"leaderboard": board, "budget": "supervised_tokens", "budget_supervised_tokens": 7}
    shown = leaderboard_table(report)
    assert "no claim" in str(shown.title)
    assert "after 7 supervised tokens" in str(shown.title)


def on_task(task: str, agent: str, seed: int, value: float, **more: Any) -> dict[str, Any]:
    return {"task": task, **run(agent, seed, value), **more}


def test_errors_are_those_over_tasks() -> None:
    rows = [
        on_task("x", "a", 0, 1.0), on_task("x", "b", 0, 0.9), on_task("x", "a", 1, 1.0),
        on_task("x", "b", 1, 1.1), on_task("y", "a", 0, 2.0), on_task("y", "b", 0, 1.6),
        on_task("z", "a", 0, 4.0), on_task("z", "b", 0, 4.4),
    ]  # fmt: skip
    reached = {"extra_compute": 0.5, "tokens_to_reference": 50.0, "share_to_reference": 0.5}
    rows = [{**row, **reached, "reached": row["task"] != "z"} for row in rows]
    second = leaderboard(rows, ["a", "b"])[1]
    assert (second["tasks"], second["seeds"], second["runs"], second["pairs"]) == (3, 2, 4, 3)
    gaps = [0.0, -0.4, 0.4]  # of x the mean over its seeds
    assert second["difference"] == pytest.approx(0.0)
    assert second["standard_error"] == pytest.approx(np.std(gaps, ddof=1) / 3**0.5)
    assert second["worst_difference"] == pytest.approx(0.0), "the worst is twice the mean here"
    assert second["worst_standard_error"] == pytest.approx(2 * second["standard_error"])
    assert second["better"] == pytest.approx(1 / 3)
    assert second["most_worse"] == pytest.approx(0.1), "4.4 for 4.0, and 1.1 for 1.0"
    assert (second["extra_compute"], second["tokens_to_reference"]) == (0.5, 50.0)
    assert (second["share_to_reference"], second["reached"]) == (0.5, 0.75)
    report = {
        "leaderboard": leaderboard(rows, ["a", "b"]),
        "budget": "tokens",
        "tasks": "real-test",
    }
    title = str(leaderboard_table(report).title)
    assert "at equal tokens read" in title
    assert "paired by task (real-test) and seed" in title


def test_a_bootstrap_is_drawn_from_eight_pairs_on() -> None:
    gap = np.arange(PAIRS, dtype=np.float64)
    assert interval(gap[:-1])[2] == "t"
    low, high, kind = interval(gap)
    assert kind == "bootstrap"
    assert gap.min() <= low < gap.mean() < high <= gap.max()
    # seven values of spread 2.16 and mean 3: 3 -+ 2.447 * 2.16 / sqrt(7)
    assert interval(gap[:-1])[:2] == pytest.approx((1.0020, 4.9980), abs=1e-3)


def test_a_run_that_diverges_has_no_loss_in_the_table(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = job_module.finetune

    def stub(own: RunConfig, **options: Any) -> dict[str, Any]:
        summary = real(own, **options)
        if own.agent.name == "proportional":
            raise DivergenceError("loss is nan")
        return summary

    monkeypatch.setattr(job_module, "finetune", stub)
    report = compare(config, agents=["uniform", "proportional"], seeds=1)
    row = report["rows"][1]
    assert (row["status"], row["target_mean"], row["worst"]) == ("diverged", None, None)
    assert row["steps"] > 0
    assert row["tokens"] > row["supervised_tokens"] > 0
    assert report["leaderboard"][1]["diverged"] == 1
    assert report["leaderboard"][0]["target_mean"] is not None
    with Path(report["csv"]).open() as file:
        assert [one["status"] for one in csv.DictReader(file)] == ["finished", "diverged"]


@pytest.mark.parametrize(
    ("agents", "seeds", "words"),
    [
        (["uniform"], 1, "at least two"),
        (["uniform", "uniform"], 1, "two are called"),
        (["uniform", "proportional"], 0, "--seeds 0"),
        (["uniform", "unifrom"], 1, "did you mean uniform"),
        (["unifrom", "uniform"], 1, "did you mean uniform"),
        (["uniform", "ppo"], 1, "has to be trained first"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    agents: list[str], seeds: int, words: str, config: RunConfig
) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(config, agents=agents, seeds=seeds)
    assert not list(Path(config.run.dir).glob("*/*/decisions.jsonl"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "token"}, "--budget token: unknown; did you mean tokens"),
        ({"split": "tests"}, "--split tests: unknown; did you mean test"),
    ],
)
def test_words_that_are_unknown_are_refused(
    options: dict[str, Any], words: str, config: RunConfig
) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(config, agents=["uniform", "proportional"], seeds=1, **options)
