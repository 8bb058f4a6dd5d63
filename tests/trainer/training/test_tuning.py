"""Tuning: trials on the validation tasks, continued where they stopped, and what they leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixgym.agents.algorithm_presets import PRESETS
from mixgym.envs.curves.tasks import sets
from mixgym.envs.errors import ConfigError
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.training import tuning
from mixgym.trainer.training.algorithms import training_needs
from mixgym.trainer.training.tuning import tune

from ..conftest import Make

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sets.TASK_SETS, "world-train", sets.TASK_SETS["world-train"][:8])
    monkeypatch.setitem(sets.TASK_SETS, "world-validation", sets.TASK_SETS["world-validation"][:4])
    monkeypatch.setitem(
        sets.TASK_SETS, "world-test", sets.TASK_SETS["world-test"][:0]
    )  # looking at one would fail


@pytest.fixture
def search(make_config: Make) -> Callable[..., RunConfig]:
    def make(folder: str, **changes: Any) -> RunConfig:
        train = {"algo": "ars", "decisions": 64, "environments": 2, **changes}
        return make_config(folder, train=train)

    return make


def test_the_preset_is_the_first_trial_and_the_best_can_be_trained(
    search: Callable[..., RunConfig],
) -> None:
    config = search("study")
    answer = tune(config, trials=3)
    assert [row["validation"] for row in answer["trials"]] == sorted(
        row["validation"] for row in answer["trials"]
    )
    first = next(row for row in answer["trials"] if row["trial"] == 0)
    preset = PRESETS["ars"].options
    assert first["values"] == {
        name: preset[name.removeprefix("options.")] for name in PRESETS["ars"].search
    }
    best = load_config(answer["best_file"])
    assert best.train.algo == "ars"
    assert {f"options.{name}": value for name, value in best.train.options.items()} == (
        answer["trials"][0]["values"]
    )
    # the study goes on, and does not begin again
    again = tune(config, trials=4)
    assert len(again["trials"]) == 4
    assert [r for r in again["trials"] if r["trial"] < 3] == answer["trials"]
    with pytest.raises(ConfigError, match="holds trials with"):
        tune(search("study", decisions=128), trials=5)


def test_what_is_given_is_not_searched(search: Callable[..., RunConfig]) -> None:
    answer = tune(search("study", options={"learning_rate": 0.3, "n_top": 2}), trials=2)
    assert set(answer["trials"][0]["values"]) == {"options.delta_std", "options.n_delta"}
    everything = {"learning_rate": 0.3, "n_delta": 2, "delta_std": 0.1, "n_top": 1}
    with pytest.raises(ConfigError, match="nothing is left to search"):
        tune(search("other", options=everything), trials=2)


def test_a_trial_reaches_algorithm_policy_and_environment(search: Callable[..., RunConfig]) -> None:
    config = search("study", algo="sac")
    values = {"options.gamma": 0.5, "policy.width": 8, "environment.reach": 0.6}
    made = tuning._with(config, values, 7)
    made = environment_for(training_needs(made), made)
    assert (made.train.options["gamma"], made.train.policy["width"], made.seed) == (0.5, 8, 7)
    assert made.environment.reach == 0.6


def test_a_trial_that_is_worse_than_most_after_a_seed_is_cut_short(
    search: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def trained(config: RunConfig) -> float:
        seen.append(config.seed)
        return 0.1 * config.seed if len(seen) <= 12 else 1.0  # good until the sixth trial

    monkeypatch.setattr(tuning, "_trained", trained)
    answer = tune(search("study"), trials=10, seeds=2)
    assert [row["trial"] for row in answer["trials"]] == [0, 1, 2, 3, 4, 5]
    assert [row["validation"] for row in answer["trials"]] == [pytest.approx(0.05)] * 6
    assert seen == [0, 1] * 6 + [0] * 4


def test_every_space_starts_at_its_preset() -> None:
    for name, preset in PRESETS.items():
        assert preset.search, name
        for option, what in preset.search.items():
            value = tuning._default(preset, option)
            if isinstance(what, list):
                assert value in what, f"{name}: {option}"
            else:
                assert what["low"] <= value <= what["high"], f"{name}: {option}"


def test_the_command_line_tunes(tmp_path: Path) -> None:
    command = ["tune", "train.decisions=64", "train.environments=2", "--algo", "ars"]
    result = CliRunner().invoke(app, [*command, "--trials", "1", "--out", str(tmp_path / "s")])
    assert result.exit_code == 0, result.output
    assert "validation" in result.output
    assert (tmp_path / "s" / "best.yaml").is_file()


def test_without_optuna_it_says_what_to_install(
    search: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"mixgym\[tune\]"):
        tune(search("study"), trials=1)
