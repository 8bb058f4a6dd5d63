"""Devices, dropout in several processes, and what launchers leave in the environment."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.errors import RunError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.causal_lm import CausalLM

Ranks = Callable[..., list[Any]]
Learners = Callable[..., CausalLM]
Plans = Callable[[Sequence[Sequence[Pack]]], IntervalPlan]

DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.3}


@pytest.fixture
def plan(make_pack: Callable[..., Pack], make_plan: Plans) -> IntervalPlan:
    return make_plan(
        [[make_pack([(0, s), (1, s + 3)]), make_pack([(1, s + 8), (0, s + 5)])] for s in range(3)]
    )


def trained(learner: CausalLM, plan: IntervalPlan) -> tuple[tuple[float, ...], torch.Tensor]:
    losses = learner.train(plan, PlainStep(), 0.0).step_loss
    return losses, torch.cat([p.detach().ravel() for p in learner.model.parameters()])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_several_processes_train_models_with_dropout(
    run_ranks: Ranks, make_learner: Learners, plan: IntervalPlan, kind: str
) -> None:
    """Each rank draws masks of its own; weights stay the same on all, and come out again."""
    config = DROPOUT if kind == "gpt2" else {"attention_dropout": 0.3}

    def train() -> Any:
        before = torch.get_rng_state()
        learner = make_learner(kind, config=config)
        losses, weights = trained(learner, plan)
        assert torch.equal(torch.get_rng_state(), before)
        return learner.device, losses, weights.numpy()

    first, second = run_ranks(2, train)
    again = run_ranks(2, train)[0]
    assert first[0] == second[0] == "cpu"
    assert first[1] == second[1] == again[1]
    assert np.array_equal(first[2], second[2])
    assert np.array_equal(first[2], again[2])
    without = trained(make_learner(kind, config=dict.fromkeys(config, 0.0)), plan)
    assert without[0] != first[1]


SETTINGS = [
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
    ("ACCELERATE_MIXED_PRECISION", "bf16"),
    ("ACCELERATE_MIXED_PRECISION", "fp8"),
    ("ACCELERATE_DOWNCAST_BF16", "true"),
    ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_settings_of_launchers_change_nothing(
    make_learner: Learners,
    plan: IntervalPlan,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    """To the last bit; unclipped, so that a factor of the gradients would show."""
    wanted = make_learner(clip=None).accumulate(plan.steps[0])
    losses, weights = trained(make_learner(clip=None), plan)
    monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=f"{name}={value} has no effect"):
        learner = make_learner(clip=None)
    assert learner.accumulate(plan.steps[0])[1] == wanted[1]
    learner.model.zero_grad(set_to_none=True)
    found = trained(learner, plan)
    assert found[0] == losses
    assert torch.equal(found[1], weights)


def test_settings_that_ask_for_nothing_are_not_spoken_of(
    make_learner: Learners, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for name, value in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_USE_FSDP", "false"),
    ):
        monkeypatch.setenv(name, value)
    make_learner()
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_in_parts_is_refused(
    make_learner: Learners, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RunError, match=f"ACCELERATE_USE_{name}=true: .*start with torchrun"):
        make_learner()


def test_processes_that_cannot_meet_say_how_to_start(
    make_learner: Learners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError, match=r"2 processes cannot meet .*torchrun"):
        make_learner()


def test_states_saved_on_a_device_that_is_not_here_are_loaded(
    make_learner: Learners, plan: IntervalPlan, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files whose tensors say that they were on a GPU; each rank loads to a device of its own."""
    from mixgym.envs.bilevel.bilevel_options import BilevelOptions
    from mixgym.envs.bilevel.rule import BilevelStep

    def rule() -> BilevelStep:
        options = BilevelOptions.model_validate({"estimator": "paired", "storage": "full"})
        return BilevelStep(options, ("first", "second"), np.ones(2), 0)

    learner, kept = make_learner(), rule()
    trained(learner, plan)
    kept._estimator.restore(
        [{"values": {"a": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}}]
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        learner.save(tmp_path / "learner")
        kept.save(tmp_path / "rule")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "learner" / "optimizer.pt", weights_only=True)
    other, again = make_learner(), rule()
    other.load(tmp_path / "learner")
    again.load(tmp_path / "rule")
    assert trained(other, plan)[0] == trained(learner, plan)[0]
    assert again.snapshot()["copies"][0]["values"]["a"].tolist() == [1.0, 1.0]
