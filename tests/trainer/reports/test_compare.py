"""Schedulers on equal terms: paired by seed, the same tokens, numbers checked by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.reports import compare as module
from mixgym.trainer.reports.compare import compare
from mixgym.trainer.reports.leaderboard import PAIRS, interval, leaderboard, leaderboard_table

from ..conftest import Make


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    return make_config("compare", training={"steps": 4, "interval": 2, "packs": 2})


def test_runs_are_paired_and_get_the_same_tokens(config: RunConfig) -> None:
    agents = ["uniform", "proportional"]
    report = compare(config, agents=agents, seeds=2)
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
    again = compare(config, agents=agents, seeds=2)
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
    report = {"leaderboard": leaderboard(rows, ["a", "b"]), "budget_supervised_tokens": 7}
    shown = leaderboard_table(report)
    assert "no claim" in str(shown.title)


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
    real = module.finetune

    def stub(own: RunConfig, **options: Any) -> dict[str, Any]:
        summary = real(own, **options)
        if own.agent.name == "proportional":
            raise DivergenceError("loss is nan")
        return summary

    monkeypatch.setattr(module, "finetune", stub)
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
