"""What plan says about packing, and the profile of a machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.models.attention import choose_attention
from mixgym.envs.learners.models.loading import load_model
from mixgym.envs.learners.profiling import profile_model
from mixgym.envs.options import ModelOptions
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.costs.descriptions import HARDWARE, model_of
from mixgym.envs.packing.costs.rate_fitting import fit_hardware
from mixgym.envs.packing.setup import find_hardware
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import load_config
from mixgym.trainer.reports.dry_run import make_plan
from mixgym.trainer.reports.packing_report import packing_lines


def plan(*overrides: str, processes: int = 1) -> dict[str, Any]:
    small = ["training.steps=10", "training.interval=5", "data.max_length=128"]
    return make_plan(load_config(None, [*small, *overrides]), processes)


def test_plan_says_what_groups_cost_and_whether_they_pay() -> None:
    groups = 'data.packing.groups=[{"length": 32}, {"length": 128, "degree": 2}]'
    report = plan(groups, processes=2)
    packing = report["packing"]
    assert [group["degree"] for group in packing["groups"]] == [1, 2]
    assert packing["balance"] == "sort"
    assert packing["judged_intervals"] == 2
    for name in ("as_configured", "one_length_sorted", "one_length_unsorted"):
        assert packing[name]["seconds"] >= packing[name]["no_wait_seconds"] > 0
    assert "the hierarchy of lengths" in packing["sentence"]
    assert any("an interval has 5 steps" in line for line in report["warnings"])
    text = "\n".join(packing_lines(packing))
    assert "groups 32 (degree 1, 0 checkpointed), 128 (degree 2, 0 checkpointed)" in text
    assert "one length, sorted" in text
    assert "ABR" in text


def test_one_process_and_one_length_need_no_verdict() -> None:
    packing = plan()["packing"]
    assert packing["groups"] == [{"length": 128, "degree": 1, "checkpointed": 0}]
    assert packing["balance"] == "none"
    assert packing["sentence"].endswith("of packs of one length")
    assert packing["warnings"] == []
    nothing = {**packing, "judged_intervals": 0}
    assert len(packing_lines(nothing)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.packing.groups=[{"length": 128, "degree": 2}]', "1 devices cannot be cut"),
        ("data.packing.hardware=nothing", "is neither a stated machine"),
        ("data.packing.packer=best", "packer"),
        ("training.interval=1", "each of the 2 groups of data.packing needs a step"),
    ],
)
def test_packing_that_cannot_be_done_is_refused(override: str, message: str) -> None:
    groups = 'data.packing.groups=[{"length": 64}, {"length": 128}]'
    with pytest.raises(ConfigError, match=message):
        plan(groups, override)


class Ticks:
    """A clock that knows what a machine of known rates would take for the last pass."""

    def __init__(self, cost: CostModel) -> None:
        self._cost, self._now, self._calls = cost, 0.0, 0
        self.passes: list[tuple[int, int]] = []

    def __call__(self) -> float:
        if self._calls % 2:
            tokens, work = self.passes[-1]
            from mixgym.envs.packing.grouping.groups import Group

            self._now += float(self._cost.micro_step(tokens, work, Group(256)).total)
        self._calls += 1
        return self._now


def test_a_profile_finds_the_rates_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelOptions(name="0.1m"), 256)
    choose_attention(model, "auto", "cpu", 256)
    shape = model_of(model.config)
    clock = Ticks(CostModel(shape, HARDWARE["cpu-core"]))

    def note(model: Any, ids: Any, positions: Any, lengths: Any) -> None:
        clock.passes.append((sum(lengths), int(np.square(lengths).sum())))

    monkeypatch.setattr("mixgym.envs.learners.profiling._pass", note)
    points = profile_model(model, 256, repeats=1, clock=clock)
    fit = fit_hardware(points, shape, HARDWARE["cpu-core"])
    assert np.abs(fit.errors).max() < 1e-6
    assert fit.hardware.dense_rate == pytest.approx(60e9)
    assert fit.hardware.fixed_seconds == pytest.approx(0.005)
    with pytest.raises(ConfigError, match="max_length=200 is too short to profile: use 256"):
        profile_model(model, 200)


def test_the_command_writes_a_machine_that_plan_reads(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    arguments = ["profile", "data.max_length=256", "--out", str(path), "--repeats", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["points"] == 12
    assert find_hardware(str(path)).dense_rate == pytest.approx(answer["dense_flops"])
    assert plan(f"data.packing.hardware={path}")["packing"]["as_configured"]["seconds"] > 0
