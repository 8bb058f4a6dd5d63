"""The dry run counts as a hand does, foresees the real run, and trains nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.learners.models import small_models as presets
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, dump_config
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.reports.dry_run import make_plan, plan_command
from mixgym.trainer.reports.dry_run_text import plan_text

Make = Callable[..., RunConfig]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> str:
    lines = [
        json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def by_hand(tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Two sources of which everything is known, in bytes: the tokenizer has merged nothing."""
    monkeypatch.setattr(presets, "_first_bytes", lambda texts, limit: [])
    for split, count in (("train", 4), ("valid", 2), ("test", 1)):
        for name, prompt in (("short", "p"), ("long", "p" * 30)):
            (tmp_path / name).mkdir(exist_ok=True)
            # rows of different completions: no duplicates, each of five bytes
            rows = [(f"{prompt}{split[0]}{i}", f"{split[0]}{i}{i}{i}{i}") for i in range(count)]
            write_rows(tmp_path / name / f"{split}.jsonl", rows)
    return make_config(
        "run",
        sources={name: {"path": str(tmp_path / name)} for name in ("short", "long")},
        data={"max_length": 64, "strata": 2, "template": "plain"},
        training={"steps": 4, "interval": 2, "packs": 2},
    )


def test_numbers_agree_with_a_count_by_hand(by_hand: RunConfig) -> None:
    from mixgym.envs.build import load_corpus

    report = make_plan(by_hand)
    extra = {}
    for source in load_corpus(by_hand).sources:
        train = source.splits["train"]
        # a completion of five bytes and the end token
        assert train.supervised.tolist() == [6] * 4
        (length,) = set(train.lengths.tolist())
        extra[source.name] = length
    assert extra["long"] == extra["short"] + 29
    for name, length in extra.items():
        row = report["sources"][name]
        assert row["rows"] == {"train": 4, "reward": 1, "select": 1, "test": 1}
        assert row["tokens"] == 4 * length
        assert row["supervised_tokens"] == 24
        assert row["tokens_per_supervised_token"] == pytest.approx(length / 6)
        assert row["held_out_supervised_tokens"] == {"reward": 6, "select": 6, "test": 6}
        assert row["strata"] == [
            {"rows": 2, "supervised_tokens": 12, "longest": length},
            {"rows": 2, "supervised_tokens": 12, "longest": length},
        ]
    cost = report["cost"]
    both = sum(extra.values())
    assert cost["reward_evaluation_tokens"] == cost["test_evaluation_tokens"] == both
    assert cost["reward_evaluations"] == report["run"]["decisions"] + 1 == 3
    train = 3 * report["run"]["tokens"]
    assert cost["measured_share_of_decisions"] == pytest.approx(3 * both / (train + 3 * both))
    assert cost["measured_share"] == pytest.approx(5 * both / (train + 5 * both))
    assert report["run"]["steps"] == 4
    assert report["run"]["tokens"] <= 4 * 2 * 64
    assert report["memory"] == {
        "parameters": 115_008,
        "weights_gradients_optimizer_bytes": 16 * 115_008,
        "largest_logits_bytes": 2 * 4 * 2 * 64 * 512,
    }


def test_warnings_name_the_source_and_the_measuring(by_hand: RunConfig) -> None:
    warnings = make_plan(by_hand)["warnings"]
    reading = [line for line in warnings if "tokens are read per supervised token" in line]
    assert [line.split(":")[0] for line in reading] == ["long"]
    (measuring,) = [line for line in warnings if "measuring takes" in line]
    assert "raise training.interval" in measuring


def test_no_warning_below_the_ratios(make_config: Make) -> None:
    config = make_config(
        "run", training={"steps": 40, "interval": 20, "packs": 4}, data={"held_out_rows": 3}
    )
    assert make_plan(config)["warnings"] == []


def test_warnings_of_the_sources_come_first(tmp_path: Path, make_config: Make) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"p{i}", "completion": "c", "reason": "none"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = make_plan(make_config("run", sources={"s": {"path": str(path)}}))
    unused, few, *_ = report["warnings"]
    assert unused == "s: columns and keys without a use: reason (40 rows)"
    assert few.startswith("fewer held-out rows than data.held_out_rows = 64")
    assert "s (reward 2, select 2, test 2)" in few


@pytest.mark.parametrize(
    "agent",
    [
        {"name": "uniform"},
        {"name": "proportional"},
        {"name": "scripted", "options": {"points": {0: {"addition": 1}, 1: {"noise": 1}}}},
    ],
)
def test_epochs_and_shares_are_those_of_the_run(make_config: Make, agent: dict[str, Any]) -> None:
    config = make_config("run", agent=agent, training={"steps": 9, "interval": 2}, seed=5)
    report, summary = make_plan(config), finetune(config)
    assert report["run"]["steps"] == summary["steps"] == 9
    assert report["run"]["decisions"] == summary["decisions"] == 5
    assert report["run"]["tokens"] == summary["cost"]["train_tokens"]
    assert report["run"]["supervised_tokens"] == summary["supervised_tokens"]
    for name, row in summary["sources"].items():
        planned = report["sources"][name]
        assert planned["expected_epochs"] == row["epochs"]
        share = planned["expected_supervised_tokens"] / summary["supervised_tokens"]
        assert share == pytest.approx(row["share"], rel=1e-12)
    measured = summary["cost"]["measure_tokens"]
    assert measured == report["cost"]["reward_evaluation_tokens"] * 6
    assert measured == report["cost"]["measure_tokens"]


@pytest.mark.parametrize("unit", ["tokens", "supervised_tokens"])
def test_a_budget_of_tokens_is_rehearsed_as_it_is_used(make_config: Make, unit: str) -> None:
    config = make_config("run", training={unit: 700, "interval": 2})
    report, summary = make_plan(config), finetune(config)
    run = report["run"]
    assert (run["budget"], run["budget_unit"]) == (700, unit)
    assert run["tokens"] == summary["cost"]["train_tokens"]
    assert run["steps"] == summary["steps"]
    assert run["decisions"] == summary["decisions"]
    used = {"tokens": run["tokens"], "supervised_tokens": run["supervised_tokens"]}[unit]
    assert 700 - 64 < used <= 700
    text = " ".join(str(line) for line in plan_text(report))
    words = {"tokens": "tokens read", "supervised_tokens": "supervised tokens"}[unit]
    assert f"on a budget of 700 {words}" in text
    assert f"compute: training reads {run['tokens']:,} tokens" in text


def test_nothing_is_trained_or_written(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(presets, "build_model", refuse)
    make_plan(make_config("run"))
    assert list(tmp_path.iterdir()) == []


def test_plain_words_come_first_and_figures_on_request(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("run", training={"steps": 2, "interval": 1})
    plan_command(config)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(
        "run: uniform trains 0.1m on a budget of 2 optimiser steps: 2 steps in 2 decisions, at a "
        "learning rate of 0.001"
    )
    for word in ("addition", "noise", "memory:", "warning: measuring takes"):
        assert word in shown
    for expert in ("PR ", "DBR", "ABR", "stratum 1"):
        assert expert not in shown
    plan_command(config, details=True)
    shown = capsys.readouterr().out
    for expert in ("PR ", "DBR", "ABR", "stratum 1", "rows read 60"):
        assert expert in shown


def test_sources_that_are_repeated_are_named(make_config: Make) -> None:
    report = make_plan(make_config("run", training={"steps": 60, "interval": 10}))
    text = "\n".join(str(line) for line in plan_text(report))
    epochs = {name: row["expected_epochs"] for name, row in report["sources"].items()}
    assert max(epochs.values()) > 4, "the sources are small"
    for name, passes in epochs.items():
        assert (f"{name} {passes:.0f} times" in text) == (passes > 4)


def test_json_is_all_of_the_standard_output(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(make_config("run")))
    result = CliRunner().invoke(app, ["plan", str(path), "--json"], prog_name="mixgym")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report) == {"sources", "run", "cost", "memory", "packing", "warnings"}


def test_what_finetune_refuses_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean uniform"):
        make_plan(make_config("run", agent={"name": "unifrm"}))
    with pytest.raises(SourceError, match=r"rows\.jsonl"):
        make_plan(make_config("run", sources={"a": {"path": str(tmp_path / "rows.jsonl")}}))
    with pytest.raises(ConfigError, match="curves: it has no rows to plan"):
        make_plan(make_config("run", sources="embedded", environment={"learner": "curves"}))
