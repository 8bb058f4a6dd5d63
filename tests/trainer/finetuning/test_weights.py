"""Bilevel weights in real runs: records, resume, and the command that fine-tunes by them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.finetuning.weights import WEIGHTS, learn_and_tune, learning
from mixgym.trainer.reports.dry_run import make_plan

from ..conftest import Make, curves, untimed

SCALEBIO: dict[str, Any] = {"agent": {"name": "scalebio"}}
KINDS: list[dict[str, Any]] = [
    {"estimator": "paired", "blocks": 1, "block_period": 2, "block_choice": "importance"},
    {"estimator": "lookahead", "every": 2, "act": "loss"},
    {"estimator": "lazy_pair", "every": 3, "pair_steps": 2, "storage": "low_rank"},
]


class _CrashError(Exception):
    pass


def records(config: RunConfig) -> list[dict[str, Any]]:
    lines = (Path(config.run.dir) / "decisions.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def crashed_and_resumed(config: RunConfig, at: int) -> dict[str, Any]:
    left = itertools.count(1)

    def hook(name: str) -> None:
        if next(left) == at:
            raise _CrashError(name)

    storage.on_failpoint = hook
    with pytest.raises(_CrashError):
        finetune(config)
    storage.on_failpoint = None
    return finetune(config, resume=True)


@pytest.mark.parametrize("options", KINDS)
def test_a_bilevel_run_goes_on_bit_equal(make_config: Make, options: dict[str, Any]) -> None:
    """The second model, lambda, the draws and the mixture, from a checkpoint between updates."""
    whole = make_config("whole", bilevel=options, **SCALEBIO)
    reached: list[str] = []
    storage.on_failpoint = reached.append
    wanted = finetune(whole)
    storage.on_failpoint = None
    found = crashed_and_resumed(
        make_config("broken", bilevel=options, **SCALEBIO), 2 * len(reached) // 3
    )
    broken = Path(whole.run.dir).parent / "broken"
    assert untimed(found) == untimed(wanted)
    assert records(make_config("broken")) == records(whole)
    model = "model/model.safetensors"
    assert (broken / model).read_bytes() == (Path(whole.run.dir) / model).read_bytes()


def test_what_a_bilevel_run_records(make_config: Make) -> None:
    config = make_config(
        "run",
        bilevel={"estimator": "paired", "travel": 20.0, "check": True},
        environment={"probes": {"bilevel_gain": 1}},
        **SCALEBIO,
    )
    finetune(config)
    first, *_, last = records(config)
    health = last["bilevel"]
    assert health["weight/addition"] + health["weight/noise"] == pytest.approx(1.0)
    assert first["mixture"] == {"addition": 0.5, "noise": 0.5}
    assert last["mixture"] != first["mixture"]
    assert last["probes"]["bilevel_gain"]["noise"] == pytest.approx(-health["gap/noise"])
    tags = curves(Path(config.run.dir) / "tensorboard")
    assert {"bilevel/travel", "bilevel/effective_sources", "bilevel/gap"} <= set(tags)
    assert [step for step, _ in tags["bilevel/weight/noise"]] == [1, 2, 3, 4, 5]


def test_any_agent_may_act_on_top(make_config: Make) -> None:
    """What is sampled is softmax(log of what it asks for + lambda)."""
    config = make_config(
        "run",
        agent={"name": "fixed", "options": {"weights": {"addition": 3, "noise": 1}}},
        environment={"step_rule": "bilevel"},
        bilevel={"estimator": "paired", "travel": 20.0},
    )
    finetune(config)
    rows = records(config)
    assert rows[0]["mixture"]["addition"] == pytest.approx(0.75, abs=1e-6)
    for before, after in itertools.pairwise(rows):
        logits = before["bilevel"]["logit/addition"] - before["bilevel"]["logit/noise"]
        odds = after["mixture"]["addition"] / after["mixture"]["noise"]
        assert odds == pytest.approx(3.0 * 2.718281828459045**logits, rel=1e-5)


def test_the_pipeline_fine_tunes_by_what_it_learnt(make_config: Make) -> None:
    config = make_config("both", weights={"rows": 20, "steps": 3}, bilevel={"estimator": "paired"})
    found = learn_and_tune(config)
    root = Path(config.run.dir)
    assert found["learn"]["steps"] == 3
    assert found["finetune"]["steps"] == 5
    assert found["weights"] == json.loads((root / WEIGHTS).read_text())["weights"]
    assert sum(found["weights"].values()) == pytest.approx(1.0)
    lines = (root / "finetune" / "decisions.jsonl").read_text().splitlines()
    tuned = [json.loads(line) for line in lines]
    assert tuned[0]["mixture"] == pytest.approx(found["weights"], abs=1e-6)
    assert "bilevel" not in tuned[0]
    assert (root / "finetune" / "model" / "config.json").is_file()
    before = (root / "learn" / "decisions.jsonl").stat().st_mtime_ns
    assert untimed(learn_and_tune(config)["finetune"]) == untimed(found["finetune"])
    assert (root / "learn" / "decisions.jsonl").stat().st_mtime_ns == before


def test_weights_are_learnt_on_a_subset(make_config: Make) -> None:
    config = learning(make_config("run", weights={"rows": 20}))
    report = make_plan(config)
    assert all(row["rows"]["train"] == 20 for row in report["sources"].values())
    rows = report["sources"]["addition"]["rows"]
    assert 0 <= rows["reward"] - rows["validation"] <= 1
    assert report["cost"]["step_factor"] == pytest.approx(1 + 5 / 30)


def refusals() -> list[tuple[dict[str, Any], str]]:
    one = {"addition": {"embedded": "addition", "rows": 60}}
    small = {
        "addition": {"embedded": "addition", "rows": 8},
        "noise": {"embedded": "noise", "rows": 60, "target": 0},
    }
    return [
        ({"sources": one}, "1 source is trained on"),
        ({"sources": small}, "validation half of the reward split is empty"),
    ]


@pytest.mark.parametrize(("changes", "message"), refusals())
def test_bad_input_is_one_line(make_config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=message):
        finetune(make_config("run", **SCALEBIO, **changes))


def test_the_pipeline_is_for_language_models(make_config: Make) -> None:
    with pytest.raises(ConfigError, match="it has no rows to learn weights on; use causal_lm"):
        learn_and_tune(make_config("run", environment={"learner": "curves"}))


def test_the_pipeline_goes_on_only_as_it_was_started(make_config: Make) -> None:
    learn_and_tune(make_config("run", weights={"rows": 20, "steps": 2}))
    with pytest.raises(ConfigError, match=r"bilevel\.rows"):
        learn_and_tune(make_config("run", weights={"rows": 30, "steps": 2}))
