"""Fine-tuning runs that probe: what is recorded, and resuming."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs import storage
from mixgym.envs.probes import PROBES
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.reports.dry_run import make_plan
from mixgym.trainer.reports.dry_run_text import plan_details

Make = Callable[..., RunConfig]
PERIODS = {"gradient_norm_last": 1, "perplexity_ratio": 2, "training_loss_ratio": 1, "ifd_ratio": 2}


@pytest.fixture
def make(make_config: Make) -> Make:
    def probed(folder: str, **environment: Any) -> RunConfig:
        section = {"probes": PERIODS, "probe_rows": 2, "reward": "log_utility", **environment}
        return make_config(folder, environment=section)

    return probed


def decisions(config: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(config.run.dir) / "decisions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_that_probes_goes_on_bit_equal_and_costs_what_was_planned(
    make: Make, remains: Callable[[Path], dict[str, Any]]
) -> None:
    whole = make("whole")
    folder, kept = Path(whole.run.dir), []

    def keep(name: str) -> None:
        if name == "folder-rename:after":  # a checkpoint has just been written
            kept.append(folder.parent / f"at-{len(kept)}" / "run")
            shutil.copytree(folder, kept[-1])

    storage.on_failpoint = keep
    try:
        finetune(whole)
    finally:
        storage.on_failpoint = None
    records = decisions(whole)
    plan = make_plan(whole)
    assert records[-1]["cost"]["probe_tokens"] == plan["cost"]["probe_tokens"] > 0
    (line,) = [text for text in plan_details(plan) if str(text).startswith("probes: ")]
    assert "perplexity_ratio every 2" in line
    assert f"{plan['cost']['probe_tokens']:,} tokens" in line
    for number, record in enumerate(records, 1):
        due = {name for name, period in PERIODS.items() if number % period == 0}
        assert set(record["probes"]) == {"gradient_norm", *due}
    wanted = remains(folder)
    assert any(tag.startswith("probe/perplexity_ratio/") for tag in wanted["curves"])
    assert kept
    for copy in kept[:2]:
        finetune(make(f"{copy.parent.name}/run"), resume=True)
        assert remains(copy) == wanted


def test_a_finished_run_is_a_reference_for_the_next(make: Make) -> None:
    first = make("first", probes={}, reward="progress")
    finetune(first)
    model = str(Path(first.run.dir) / "model")
    second = make("second", reference=model, probes={"excess_loss": 1}, probe_at_start=True)
    finetune(second)
    cost = make_plan(second)["cost"]
    records = decisions(second)
    assert records[-1]["cost"]["probe_tokens"] == cost["probe_tokens"]
    excess = [record["probes"]["excess_loss"] for record in records]
    assert all(value >= 0 for values in excess for row in values.values() for value in row)
    assert PROBES["excess_loss"].needs_reference
