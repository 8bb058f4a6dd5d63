"""The callbacks write each decision once, save when due, and keep the bar in step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.curves.learner import CurveLearner
from mixgym.envs.errors import DivergenceError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.assembly import Assembly, assemble
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.recorder import SECONDS, ProgressBar, Recorder

Make = Callable[..., RunConfig]


@pytest.fixture
def run(make_config: Make) -> RunFolder:
    config = make_config("run", sources="embedded", environment={"learner": "curves"})
    return RunFolder.create(config.run.dir, config)


@pytest.fixture
def assembly(run: RunFolder) -> Assembly:
    return assemble(run.config)


def learn(assembly: Assembly, *callbacks: Any) -> None:
    assembly.agent.learn(100, callback=list(callbacks))


def test_every_decision_is_one_line_and_the_episode_ends_the_run(
    run: RunFolder, assembly: Assembly
) -> None:
    learn(assembly, Recorder(run, assembly.env, None))
    records = run.read_decisions()
    assert [record["decision"] for record in records] == [1, 2, 3, 4, 5]
    assert assembly.agent.num_timesteps == 5
    for record in records:
        assert set(SECONDS) <= set(record["time"])
        assert all(value >= 0 for value in record["time"].values())
        parts = sum(record["time"][name] for name in SECONDS[:3])
        assert record["time"]["decision_seconds"] >= parts


def test_checkpoints_are_saved_when_due_and_hold_environment_and_agent(
    run: RunFolder, assembly: Assembly
) -> None:
    learn(assembly, Recorder(run, assembly.env, None))
    latest = run.latest_checkpoint()
    assert latest is not None
    decision, folder = latest
    assert decision == 4
    assert json.loads((folder / "agent.json").read_text()) == {"memory": None}
    assert (folder / "environment" / "environment.json").is_file()


def test_a_failure_is_raised_and_not_recorded(
    run: RunFolder, assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any) -> None:
        raise DivergenceError("the training loss is nan at step 1")

    monkeypatch.setattr(CurveLearner, "train", diverge)
    with pytest.raises(DivergenceError, match=r"step 1 \(decision 1, shares: source0 0\.25"):
        learn(assembly, Recorder(run, assembly.env, None))
    assert run.read_decisions() == []


@pytest.mark.parametrize("disable", [False, True])
def test_the_bar_counts_steps(
    assembly: Assembly, disable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar(assembly.env, disable=disable)
    learn(assembly, bar, lambda found, _: not found["dones"][0])
    bar.close()
    shown = capsys.readouterr().err
    assert ("5/5" in shown) is not disable
    assert ("source0 25%" in shown) is not disable


def test_the_bar_closes_before_it_was_opened(assembly: Assembly) -> None:
    ProgressBar(assembly.env, disable=True).close()


def test_a_resumed_bar_starts_where_the_run_stands(
    assembly: Assembly, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    observation = assembly.vector.reset()
    for _ in range(3):
        observation, *_rest = assembly.vector.step(assembly.agent.predict(observation)[0])
    bar = ProgressBar(assembly.env, disable=False)
    bar.init_callback(assembly.agent)
    bar.on_training_start({}, {})
    bar.close()
    assert "3/5" in capsys.readouterr().err
