"""The demonstration leaves what it promises, and its tables compare all schedules."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mixgym.trainer import demo
from mixgym.trainer.demo import AGENTS, main

SOURCES = ("addition", "reversal", "sorting", "lookup", "numbers", "brackets", "noise")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        **demo.SETTINGS,
        "training": {"steps": 2, "interval": 1, "packs": 2, "learning_rate": 5e-3},
    }
    monkeypatch.setattr(demo, "SETTINGS", settings)
    monkeypatch.setattr(demo, "TRAINING", {"decisions": 256, "environments": 8})


def run_main(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", str(folder)])
    main()


def check(folder: Path, shown: str) -> None:
    for name in (*SOURCES, *AGENTS, "target mean", "worst target", "tensorboard --logdir"):
        assert name in shown
    for name in ("frozen twin", "proportional", "minus uniform"):
        assert name in shown
    assert list((folder / "training" / "tensorboard").rglob("events.out.tfevents.*"))
    for agent in AGENTS:
        run = folder / agent
        assert list((run / "tensorboard").glob("events.out.tfevents.*"))
        assert (run / "mixture.png").read_bytes().startswith(b"\x89PNG")
        assert (run / "model" / "model.safetensors").is_file()
        summary = json.loads((run / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert f"{summary['test']['mean_after']:,.3f}" in shown


@pytest.mark.usefixtures("quick")
def test_a_table_and_files_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(tmp_path / "demo", monkeypatch)
    check(tmp_path / "demo", capsys.readouterr().out)


@pytest.mark.usefixtures("quick")
def test_it_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for _ in range(2):
        run_main(tmp_path / "demo", monkeypatch)
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if "it/s" not in line])  # bars tell the time
    assert shown[0] == shown[1]


@pytest.mark.usefixtures("quick")
def test_all_schedules_start_from_the_same_model(tmp_path: Path) -> None:
    demo.train_agent(tmp_path)
    summaries = demo.demo(tmp_path)
    uniform, *others = (summary["sources"] for summary in summaries.values())
    for other in others:
        for name in SOURCES:
            assert uniform[name]["test_before"] == other[name]["test_before"]
            assert uniform[name]["test_after"] != other[name]["test_after"]
    assert uniform["noise"]["target"] == 0


@pytest.mark.usefixtures("quick")
def test_an_agent_that_did_not_change_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        demo, "TRAINING", {"decisions": 256, "environments": 8, "options": {"learning_rate": 0.0}}
    )
    with pytest.raises(SystemExit) as stopped:
        run_main(tmp_path / "demo", monkeypatch)
    assert stopped.value.code == 1
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(tmp_path / "demo", monkeypatch)
    check(tmp_path / "demo", capsys.readouterr().out)
