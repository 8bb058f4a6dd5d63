"""Training an agent: what it leaves, and that a killed training goes on as if nothing happened."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mixgym.agents.policies.export import ExportedPolicy
from mixgym.envs import storage
from mixgym.envs.errors import ConfigError
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.training import train as module
from mixgym.trainer.training.train import parameters_changed, train
from mixgym.trainer.training.training_log import TensorBoardScalars

from ..conftest import Make, curves

#: four rollouts of eight decisions in two environments, a checkpoint after each
TINY = {
    "decisions": 64,
    "environments": 2,
    "evaluate_every": 32,
    "save_every": 1,
    "options": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
    "policy": {"width": 8},
}


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass between two event files, whose names sort by them."""
    real, ahead = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + 0.01 * next(ahead))
    monkeypatch.setattr(
        module, "TensorBoardScalars", lambda *a: (_skip(ahead, 300), TensorBoardScalars(*a))[1]
    )


def _skip(counter: Any, number: int) -> None:
    for _ in range(number):
        next(counter)


class _CrashError(BaseException):
    """Not an Exception: nothing may handle it."""


pytestmark = pytest.mark.usefixtures("few_tasks")


@pytest.fixture
def tiny(make_config: Make) -> Callable[..., RunConfig]:
    def make(folder: str, **changes: Any) -> RunConfig:
        sections = {name: changes.pop(name) for name in ("training", "model") if name in changes}
        return make_config(folder, train={**TINY, **changes}, **sections)

    return make


def remains(run: Path) -> dict[str, Any]:
    """What a training leaves, as values to compare; times and paths aside."""
    summary = json.loads((run / "summary.json").read_text())
    return {
        "agent": (run / "agent" / "policy.safetensors").read_bytes(),
        "twin": (run / "twin" / "policy.safetensors").read_bytes(),
        "card": json.loads((run / "agent" / "policy.json").read_text()),
        "curves": {
            str(path.relative_to(run)): curves(path)
            for path in sorted((run / "tensorboard" / "training").iterdir())
        },
        "summary": {name: value for name, value in summary.items() if name != "agent"},
        "checkpoints": sorted(path.name for path in run.glob("checkpoints/*")),
        "entries": sorted(path.name for path in run.iterdir()),
    }


def test_a_training_leaves_an_agent_its_twin_and_its_curves(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run")
    summary = train(config)
    run = Path(config.run.dir)
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["parameters_changed"] is True
    assert summary["algorithm"] == "ppo"
    assert [row["agent"] for row in summary["validation"]] == [
        "uniform", "agent", "frozen twin", "proportional",
    ]  # fmt: skip
    assert all(row["tasks"] == 4 for row in summary["validation"])
    assert parameters_changed(run / "twin", run / "last")
    assert not parameters_changed(run / "agent", run / "agent")
    found = curves(run / "tensorboard" / "training" / "0-curves")
    ((step, paid),) = found["episode/reward/global"]
    assert step == 64, "an episode has 32 decisions"
    assert found["rollout/ep_rew_mean"] == [(64, pytest.approx(paid, rel=1e-5))]
    assert found["episode/reward/components/progress"] == [(64, pytest.approx(paid, rel=1e-5))]
    assert "reward/global" not in found, "runs have that tag"
    assert {"validation/mean_nll", "validation/worst_excess", "validation/gain_over_uniform"} <= {
        *found
    }
    assert [step for step, _ in found["validation/mean_nll"]] == [0, 32, 64], "0 is the twin"
    assert "train/loss" in found
    assert ExportedPolicy(run / "agent", shape=(3, 2)).card["algorithm"] == "ppo"
    assert train(config, resume=True) == summary, "finished"


def test_the_command_line_trains(tmp_path: Path) -> None:
    options = {"train": {**TINY, "decisions": 32}, "run": {"dir": str(tmp_path / "run")}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(options))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "train.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == "finished"
    again = CliRunner().invoke(app, ["train", str(tmp_path / "run"), "--resume"])
    assert again.exit_code == 0, again.output
    assert "frozen twin" in again.output


def run_with_crash(config: RunConfig, number: int) -> bool:
    """Crash at a failpoint, then resume; returns whether that many were reached."""
    reached = 0

    def crash(name: str) -> None:
        nonlocal reached
        reached += 1
        if reached == number:
            raise _CrashError(name)

    storage.on_failpoint = crash
    try:
        train(config)
    except _CrashError:
        storage.on_failpoint = None
        train(config, resume=(Path(config.run.dir) / "config.yaml").is_file())
        return True
    finally:
        storage.on_failpoint = None
    return False


def count_failpoints(config: RunConfig) -> int:
    names: list[str] = []
    storage.on_failpoint = names.append
    train(config)
    storage.on_failpoint = None
    return len(names)


def test_a_crashed_training_resumes_bit_equal(tiny: Callable[..., RunConfig]) -> None:
    total = count_failpoints(tiny("unbroken"))
    expected = remains(Path(tiny("unbroken").run.dir))
    assert total > 50
    for number in np.linspace(8, total, 9).astype(int).tolist():
        config = tiny(f"crash-{number}")
        assert run_with_crash(config, number)
        assert remains(Path(config.run.dir)) == expected, f"crashed at {number} of {total}"


@pytest.mark.slow
def test_a_training_crashed_anywhere_resumes_bit_equal(tiny: Callable[..., RunConfig]) -> None:
    total = count_failpoints(tiny("unbroken"))
    expected = remains(Path(tiny("unbroken").run.dir))
    for number in range(1, total + 1):
        config = tiny(f"crash-{number}")
        assert run_with_crash(config, number)
        assert remains(Path(config.run.dir)) == expected, f"crashed at {number} of {total}"


def test_stages_follow_each_other_and_resume_in_the_second(tiny: Callable[..., RunConfig]) -> None:
    def staged(folder: str) -> RunConfig:
        return tiny(
            folder,
            stages=["curves", "causal_lm"],
            decisions=16,
            language_decisions=12,
            options={"n_steps": 4, "batch_size": 4, "n_epochs": 1},
        )

    total = count_failpoints(staged("unbroken"))
    expected = remains(Path(staged("unbroken").run.dir))
    found = expected["curves"]
    assert [*found] == [
        "tensorboard/training/0-curves", "tensorboard/training/1-causal_lm",
    ]  # fmt: skip
    second = found["tensorboard/training/1-causal_lm"]
    assert [step for step, _ in second["episode/reward/global"]] == [5, 10], "five decisions each"
    assert "rollout/ep_rew_mean" in second
    assert any(name.startswith("step-100000") for name in expected["checkpoints"])
    for number in (total - 20, total - 60):
        config = staged(f"crash-{number}")
        assert run_with_crash(config, number)
        assert remains(Path(config.run.dir)) == expected, f"crashed at {number} of {total}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"n_stepz": 3}}, "train.options"),
        ({"policy": {"widht": 3}}, "train.policy"),
        ({"algo": "ppoo"}, "train.algo=ppoo"),
        ({"options": {"n_steps": 8, "batch_size": 0}}, "train.options"),
    ],
)
def test_bad_options_name_their_key(
    changes: dict[str, Any], words: str, tiny: Callable[..., RunConfig]
) -> None:
    config = tiny("run", **changes)
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert not Path(config.run.dir).exists(), "nothing is left behind that looks like a run"


def test_unknown_stages_are_refused(tiny: Callable[..., RunConfig]) -> None:
    with pytest.raises(ValueError, match="stages"):
        tiny("run", stages=["clouds"])


def test_a_trained_agent_drives_a_run_with_other_sources(
    tiny: Callable[..., RunConfig], make_config: Make
) -> None:
    trained = tiny("agent", decisions=32)
    train(trained)
    for count in (1, 2, 3):
        names = ["addition", "reversal", "noise"][:count]
        config = make_config(
            f"run-{count}",
            sources={name: {"embedded": name, "rows": 40} for name in names},
            agent={"name": trained.run.dir},
            data={"strata": count},
        )
        summary = finetune(config)
        assert summary["status"] == "finished"
        assert [*summary["sources"]] == names


def test_a_batch_is_never_larger_than_a_rollout(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run", policy={"width": 12}, decisions=16, options={"n_steps": 8})
    train(config)
    card = json.loads((Path(config.run.dir) / "agent" / "policy.json").read_text())
    assert card["width"] == 12
