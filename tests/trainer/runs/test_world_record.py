"""What a run leaves for those who study its curve without its rows."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.trainer.finetuning.assembly import assemble
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.runs.world_record import WORLD, world_record

from ..conftest import Make


def known(table: dict[str, list[float | None]]) -> float:
    return sum(value for row in table.values() for value in row if value is not None)


def test_the_world_and_the_decisions_tell_a_whole_curve(make_config: Make) -> None:
    run = {"keep_model": False, "keep_last": 0, "tensorboard": False}
    config = make_config("run", run=run)
    summary = finetune(config)
    folder = Path(config.run.dir)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "decisions.jsonl", "summary.json", "world.json",
    ]  # fmt: skip
    assert summary["model"] is None
    world = json.loads((folder / WORLD).read_text())
    records = RunFolder.open(folder).read_decisions()
    assert (world["names"], world["strata"]) == (["addition", "noise"], 2)
    assert (world["targets"], world["step_tokens"]) == ({"addition": 1.0, "noise": 0.0}, 128)
    check_start(world, summary)
    check_cells(records)
    for record, before in zip(records, [{"cost": {"train_tokens": 0}}, *records], strict=False):
        read = record["cost"]["train_tokens"] - before["cost"]["train_tokens"]
        assert sum(record["tokens"].values()) == read > 0


def check_start(world: dict[str, Any], summary: dict[str, Any]) -> None:
    """Sizes, costs and losses agree with each other, and with the run's own reward."""
    for name in world["names"]:
        tokens, supervised, rows = (
            sum(world["train"][key][name]) for key in ("tokens", "supervised", "rows")
        )
        assert tokens > supervised > rows > 0
        assert world["cost"][name] == pytest.approx(tokens / supervised)
        held = world["held_out"]["reward"]["supervised"][name]
        losses = world["start"]["cells"]["loss"][name]
        assert [loss is None for loss in losses] == [count is None for count in held]
        pairs = [(loss, count) for loss, count in zip(losses, held, strict=True) if count]
        mean = np.average([loss for loss, _ in pairs], weights=[count for _, count in pairs])
        assert world["start"]["loss"][name] == pytest.approx(mean)
        assert 0 < world["start"]["error"][name] < world["start"]["loss"][name]
        errors = world["start"]["cells"]["error"][name]
        assert all(loss is not None for loss, e in zip(losses, errors, strict=True) if e)
    assert world["start"]["mean"] == world["start"]["loss"]["addition"]
    fall = world["start"]["mean"] - summary["sources"]["addition"]["reward_after"]
    assert summary["return"] == pytest.approx(fall)


def check_cells(records: list[dict[str, Any]]) -> None:
    """Strata add up to sources, and loss to the loss of the reward split."""
    for record in records:
        supervised = known(record["cells"]["supervised"])
        for name, tokens in record["tokens"].items():
            assert sum(record["cells"]["tokens"][name]) == tokens
        for name, share in record["share"].items():
            mine = sum(record["cells"]["supervised"][name])
            assert share == pytest.approx(mine / supervised)
        losses = [loss for loss in record["cells"]["loss"]["addition"] if loss is not None]
        assert min(losses) <= record["loss"]["reward"]["addition"] <= max(losses)
        assert set(record["error"]) == set(record["cells"]["error"]) == set(record["tokens"])
        assert min(record["error"].values()) > 0


def test_rates_sum_the_schedule(make_config: Make) -> None:
    config = make_config("run", training={"steps": 6, "interval": 3, "schedule": "linear"})
    finetune(config)
    records = RunFolder.open(config.run.dir).read_decisions()
    one = make_config("one", training={"steps": 6, "interval": 1, "schedule": "linear"})
    finetune(one)
    rates = [
        record["optimizer"]["learning_rate"]
        for record in RunFolder.open(one.run.dir).read_decisions()
    ]
    for record, part in zip(records, (rates[:3], rates[3:]), strict=True):
        assert record["optimizer"]["rates"] == pytest.approx(math.fsum(part))
        assert record["optimizer"]["learning_rate"] == pytest.approx(part[-1])


def test_an_empty_stratum_is_null(make_config: Make) -> None:
    source = {"embedded": "addition", "rows": 60}
    target = {"embedded": "reversal", "rows": 60, "train": False}
    config = make_config("run", sources={"addition": source, "target": target})
    assembly = assemble(config)
    assembly.vector.reset()
    assert isinstance(assembly.env.world.learner, CausalLM)
    world = world_record(assembly.env, config)
    for key in ("rows", "supervised", "tokens"):
        assert world["train"][key]["target"] == [None, None]
    assert world["cells"]["cost"]["target"] == [None, None]
    assert None not in world["start"]["cells"]["loss"]["target"]
    record = assembly.vector.step(assembly.agent.predict(assembly.vector.reset())[0])[3][0]
    assert record["decision"]["cells"]["tokens"]["target"] == [None, None]
    assert record["decision"]["tokens"]["target"] == 0


def test_closed_form_curves_leave_what_they_have(make_config: Make) -> None:
    config = make_config("run", sources="embedded", environment={"learner": "curves"})
    summary = finetune(config)
    world = json.loads((Path(config.run.dir) / WORLD).read_text())
    assert set(world["train"]) == {"supervised"}
    assert len(world["start"]["cells"]["loss"]) == len(world["names"]) == len(summary["sources"])


def test_a_resumed_run_keeps_its_world(make_config: Make) -> None:
    config = make_config("run")
    finetune(config)
    folder = Path(config.run.dir)
    before = (folder / WORLD).read_bytes()
    (folder / "summary.json").unlink()
    finetune(config, resume=True)
    assert (folder / WORLD).read_bytes() == before
    (folder / "summary.json").unlink()
    (folder / WORLD).unlink()
    finetune(config, resume=True)
    assert (folder / WORLD).read_bytes() == before, "a checkpoint knows the start"
