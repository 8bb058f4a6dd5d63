import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep, TrainReport
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.learning_rate import learning_rate_factor
from mixgym.envs.learners.models.attention import DOCUMENTS
from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.options import TrainingOptions
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport

LearnerMaker = Callable[..., CausalLM]
PackMaker = Callable[..., Pack]
PlanMaker = Callable[[Sequence[Sequence[Pack]]], IntervalPlan]

ROWS = [(0, 0), (1, 3), (0, 7), (1, 4), (0, 2), (1, 11)]
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.3}


@pytest.fixture
def plan(make_pack: PackMaker, make_plan: PlanMaker) -> IntervalPlan:
    """Three steps of two packs."""
    return make_plan(
        [
            [make_pack([(0, s), (1, s + 3)]), make_pack([(1, s + 8), (0, s + 5), (0, s + 9)])]
            for s in range(3)
        ]
    )


def weights(learner: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def gradients(learner: CausalLM) -> torch.Tensor:
    found = [p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]
    return torch.cat(found).clone()


def step_of(learner: CausalLM, packs: Sequence[Pack]) -> tuple[np.ndarray, float, torch.Tensor]:
    """Cell sums, loss and gradient of a step that is not taken."""
    sums, loss = learner.accumulate(tuple(packs))
    found = gradients(learner)
    learner.model.zero_grad(set_to_none=True)
    return sums, loss, found


def train(learner: CausalLM, plan: IntervalPlan, progress: float = 0.0) -> TrainReport:
    return learner.train(plan, PlainStep(), progress)


def row_nll(learner: CausalLM, tokens: Any, labels: Any) -> torch.Tensor:
    """Losses of a row's supervised tokens by an ordinary unpacked call."""
    name = learner.model.config._attn_implementation
    learner.model.set_attn_implementation("eager")
    ids = torch.as_tensor(tokens, dtype=torch.int64)
    with torch.no_grad():
        logits = learner.model(ids[None], use_cache=False).logits[0]
    learner.model.set_attn_implementation(name)
    losses = cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
    return losses[torch.as_tensor(labels)[1:]]


# the loss of a step


def test_loss_is_the_weighted_token_mean(
    make_learner: LearnerMaker, make_pack: PackMaker, sources: tuple[Source, ...]
) -> None:
    """Against unpacked calls, with weights other than 1 and unequal token counts."""
    learner = make_learner()
    packs = [make_pack(ROWS[:1], 0.5), make_pack(ROWS[1:4], 2.0), make_pack(ROWS[4:])]
    sums, loss, _ = step_of(learner, packs)
    top = bottom = 0.0
    cells = np.zeros((2, 2))
    for pack in packs:
        for k, g, i in pack.rows.tolist():
            losses = row_nll(learner, *sources[k].splits["train"].row(i))
            top += pack.weight * float(losses.sum())
            bottom += pack.weight * len(losses)
            cells[k, g] += float(losses.sum())
    assert loss == pytest.approx(top / bottom, rel=1e-6)
    np.testing.assert_allclose(sums, cells, rtol=1e-5)


def test_the_hand_worked_global_token_mean(
    make_learner: LearnerMaker,
    make_pack: PackMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four units of (tokens, loss sum) (2, 4), (8, 8), (10, 30), (20, 20): 62 / 40 = 1.55."""
    units = [(2, 4.0), (8, 8.0), (10, 30.0), (20, 20.0)]
    rows = EncodedRows.from_lists(
        [(np.ones(n + 1, np.int32), np.arange(n + 1) > 0) for n, _ in units]
    )
    empty = EncodedRows.from_lists([])
    splits = {"train": rows, "reward": empty, "select": empty, "test": empty}
    strata = {name: np.zeros(len(split), np.int64) for name, split in splits.items()}
    source = Source("units", 1.0, splits, strata, 1, None, SourceReport("units", "text"))
    packs = tuple(
        Pack(np.array([[0, 0, i]]), np.array([n + 1]), 32) for i, (n, _) in enumerate(units)
    )

    def losses(self: LanguageModel, batch: Any) -> torch.Tensor:
        each = {n: total / n for n, total in units}
        known = torch.cat([torch.full((n - 1,), each[n - 1]) for n in batch.document_lengths])
        parameter = next(self.module.parameters())
        return known + 0.0 * parameter.sum()

    monkeypatch.setattr(LanguageModel, "token_losses", losses)
    for accumulation in (1, 2, 3, 4):
        learner = make_learner(sources=[source], accumulation=accumulation)
        assert learner.accumulate(packs)[1] == pytest.approx(1.55, rel=1e-6)


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_loss_and_gradient_do_not_depend_on_the_packing(
    make_learner: LearnerMaker, make_pack: PackMaker, attention: str
) -> None:
    learner = make_learner(model={"attention": attention}, accumulation=2)
    ways = [
        [make_pack(ROWS)],
        [make_pack([row]) for row in ROWS],
        [make_pack(ROWS[:2]), make_pack(ROWS[2:])],
        [make_pack(ROWS[2:][::-1]), make_pack(ROWS[:2])],
    ]
    wanted = step_of(learner, ways[0])
    for packs in ways[1:]:
        found = step_of(learner, packs)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
        assert found[1] == pytest.approx(wanted[1], rel=1e-6)
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [2, 3, 4, 9])
def test_loss_and_gradient_do_not_depend_on_accumulation(
    make_learner: LearnerMaker, make_pack: PackMaker, accumulation: int
) -> None:
    packs = [
        make_pack(ROWS[:1]),
        make_pack(ROWS[1:3], 3.0),
        make_pack(ROWS[3:5]),
        make_pack(ROWS[5:]),
    ]
    wanted = step_of(make_learner(), packs)
    found = step_of(make_learner(accumulation=accumulation), packs)
    assert found[1] == pytest.approx(wanted[1], rel=1e-6)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)


def test_a_common_factor_of_the_weights_changes_nothing(
    make_learner: LearnerMaker, make_pack: PackMaker
) -> None:
    learner = make_learner()
    wanted = step_of(learner, [make_pack(ROWS[:3]), make_pack(ROWS[3:])])
    found = step_of(learner, [make_pack(ROWS[:3], 4.0), make_pack(ROWS[3:], 4.0)])
    assert found[1] == pytest.approx(wanted[1], rel=1e-6)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-5, atol=1e-7)


def test_a_pack_of_weight_zero_is_not_trained_on(
    make_learner: LearnerMaker, make_pack: PackMaker
) -> None:
    for accumulation in (1, 2):
        learner = make_learner(accumulation=accumulation)
        wanted = step_of(learner, [make_pack(ROWS[:3])])
        found = step_of(learner, [make_pack(ROWS[:3]), make_pack(ROWS[3:], 0.0)])
        assert found[1] == pytest.approx(wanted[1], rel=1e-6)
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-6)


def test_prompts_give_no_loss(make_learner: LearnerMaker, sources: tuple[Source, ...]) -> None:
    """A row without labels in the step changes nothing; neither does padding, for there is none."""
    tokens, labels = sources[0].splits["train"].row(0)
    rows = EncodedRows.from_lists([(tokens, labels), (tokens, np.zeros_like(labels))])
    empty = EncodedRows.from_lists([])
    splits = {"train": rows, "reward": empty, "select": empty, "test": empty}
    strata = {name: np.zeros(len(split), np.int64) for name, split in splits.items()}
    source = Source("one", 1.0, splits, strata, 1, None, SourceReport("one", "text"))
    length = len(tokens)
    packs = [Pack(np.array([[0, 0, i]]), np.array([length]), 32) for i in range(2)]
    for accumulation in (1, 2):
        learner = make_learner(sources=[source], accumulation=accumulation)
        wanted, found = step_of(learner, packs[:1]), step_of(learner, packs)
        assert found[1] == pytest.approx(wanted[1], rel=1e-6)
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-6)


def test_the_end_token_is_learnt_though_it_is_the_pad_token(make_learner: LearnerMaker) -> None:
    """Labels go by position: token 0 is pad and end in the model, and still counts."""
    tokens, labels = np.array([5, 9, 0], np.int32), np.array([False, True, True])
    rows = EncodedRows.from_lists([(tokens, labels)])
    source = Source(
        "one", 1.0, {"train": rows}, {"train": np.zeros(1, np.int64)}, 1, None,
        SourceReport("one", "text"),
    )  # fmt: skip
    learner = make_learner(sources=[source])
    assert learner.model.config.pad_token_id == learner.model.config.eos_token_id == 0
    loss = learner.accumulate((Pack(np.array([[0, 0, 0]]), np.array([3]), 32),))[1]
    assert loss == pytest.approx(float(row_nll(learner, tokens, labels).mean()), rel=1e-6)


def test_the_report_of_an_interval(make_learner: LearnerMaker, plan: IntervalPlan) -> None:
    learner = make_learner()
    report = train(learner, plan)
    assert report.supervised is plan.supervised
    assert len(report.step_loss) == len(report.gradient_norm) == 3
    assert report.learning_rate == 1e-2
    first = make_learner().accumulate(plan.steps[0])
    assert report.step_loss[0] == first[1]
    assert np.all(report.loss_sum >= first[0])
    assert np.all(np.isfinite(report.source_nll))


# the optimiser


def reference_factor(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    """What a step's learning rate is multiplied with, counted in steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (steps - step) / (steps - warmup_steps)
    kinds = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return kinds[schedule]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 10])
def test_learning_rate_factor(schedule: str, warmup_steps: int) -> None:
    training = TrainingOptions.model_validate(
        {"steps": 10, "warmup": warmup_steps / 10, "schedule": schedule}
    )
    for step in range(10):
        wanted = reference_factor(step, 10, warmup_steps, schedule)
        assert learning_rate_factor(step / 10, training) == pytest.approx(wanted, abs=1e-12)
        assert wanted > 0


def test_learning_rate_factor_worked_by_hand() -> None:
    training = TrainingOptions(steps=10, warmup=0.2, schedule="cosine")
    found = [learning_rate_factor(step / 10, training) for step in (0, 1, 2, 6, 9)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.5 * (1 - math.cos(math.pi / 8))])
    assert learning_rate_factor(1.0, training) == 0.0
    assert learning_rate_factor(1.3, training) == 0.0


def test_the_rate_follows_the_budget_through_intervals(
    make_learner: LearnerMaker, plan: IntervalPlan, make_plan: PlanMaker
) -> None:
    rates = []
    learner = make_learner(schedule="linear", learning_rate=1.0, clip=1e-9)
    for index in range(3):
        report = train(learner, make_plan([plan.steps[index]]), index / 10)
        rates.append(report.learning_rate)
    assert rates == pytest.approx([1.0, 0.9, 0.8])
    again = make_learner(schedule="linear", learning_rate=1.0, clip=1e-9)
    assert train(again, plan).learning_rate == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("unit", "amount"),
    [("supervised_tokens", lambda plan: plan.supervised), ("tokens", lambda plan: plan.tokens)],
)
def test_a_budget_in_tokens_sets_the_rate(
    make_learner: LearnerMaker, plan: IntervalPlan, unit: str, amount: Any
) -> None:
    budget = {unit: 2 * int(amount(plan).sum())}
    learner = make_learner(schedule="linear", learning_rate=1.0, clip=1e-9, **budget)
    assert train(learner, plan).learning_rate == pytest.approx(1 - 2 / 6)


def test_clipping(make_learner: LearnerMaker, plan: IntervalPlan) -> None:
    """The reported norm is the one before, and what AdamW gets is at most the limit."""
    seen = []
    for limit in (1e-3, None):
        learner = make_learner(clip=limit)
        learner.accumulate(plan.steps[0])
        norm = float(gradients(learner).norm())
        optimiser = learner.optimisation.optimizer
        original = optimiser.step

        def step(original: Any = original, learner: CausalLM = learner) -> None:
            seen.append(float(gradients(learner).norm()))
            original()

        optimiser.step = step  # type: ignore[method-assign]
        assert learner.apply() == pytest.approx(norm, rel=1e-5)
        seen.append(norm)
    assert seen[0] == pytest.approx(1e-3, rel=1e-2)
    assert seen[2] == pytest.approx(seen[3], rel=1e-6)


def test_weights_decay_and_biases_and_norms_do_not(make_learner: LearnerMaker) -> None:
    learner = make_learner("gpt2", weight_decay=0.1)
    decayed, others = learner.optimisation.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in learner.model.named_parameters()}
    for name in (names[id(p)] for p in others["params"]):
        assert "bias" in name or "ln_" in name, name
    for name in (names[id(p)] for p in decayed["params"]):
        assert name.endswith(("wte.weight", "wpe.weight", "c_attn.weight", "c_proj.weight",
                              "c_fc.weight")), name  # fmt: skip
    total = len(decayed["params"]) + len(others["params"])
    assert total == len(list(learner.model.parameters()))


def test_training_equals_a_loop_written_out(
    make_learner: LearnerMaker, plan: IntervalPlan, sources: tuple[Source, ...]
) -> None:
    """Unpacked rows, eager attention, AdamW of torch: the same weights after three steps."""
    learner, plain = make_learner(), make_learner().model
    train(learner, plan)
    plain.set_attn_implementation("eager")
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
    )
    for packs in plan.steps:
        losses = []
        for k, _, i in (row for pack in packs for row in pack.rows.tolist()):
            tokens, labels = sources[k].splits["train"].row(i)
            ids = torch.as_tensor(tokens, dtype=torch.int64)
            logits = plain(ids[None], use_cache=False).logits[0, :-1]
            each = cross_entropy(logits, ids[1:], reduction="none")
            losses.append(each[torch.as_tensor(labels)[1:]])
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    for left, right in zip(learner.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-5)


# measuring


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_evaluate_equals_rows_measured_alone(
    make_learner: LearnerMaker, sources: tuple[Source, ...], kind: str, attention: str
) -> None:
    learner = make_learner(kind, model={"attention": attention})
    found = learner.evaluate("reward")
    sums, counts, tokens = np.zeros((2, 2)), np.zeros((2, 2), np.int64), 0
    for k, source in enumerate(sources):
        rows = source.splits["reward"]
        for i in range(len(rows)):
            losses = row_nll(learner, *rows.row(i))
            cell = (k, int(source.strata["reward"][i]))
            sums[cell] += float(losses.sum())
            counts[cell] += len(losses)
            tokens += int(rows.lengths[i])
    np.testing.assert_allclose(found.loss_sum, sums, rtol=1e-5)
    assert np.array_equal(found.supervised, counts)
    assert found.tokens == tokens
    assert counts[1, 1] == 0
    assert math.isnan(found.nll[1, 1])
    np.testing.assert_allclose(found.source_nll, sums.sum(1) / counts.sum(1), rtol=1e-5)


def test_evaluate_an_empty_split(make_learner: LearnerMaker) -> None:
    found = make_learner().evaluate("test")
    assert found.tokens == 0
    assert np.isnan(found.nll).all()


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_touches_nothing(
    make_learner: LearnerMaker, plan: IntervalPlan, training: bool
) -> None:
    learner = make_learner("gpt2", config=DROPOUT)
    train(learner, plan)
    learner.model.train(training)
    learner.model.transformer.h[0].eval()
    learner.accumulate(plan.steps[0])
    modes = [module.training for module in learner.model.modules()]
    before, grads, state = weights(learner), gradients(learner), learner.snapshot()
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    first, second = learner.evaluate("reward"), learner.evaluate("reward")
    assert np.array_equal(first.loss_sum, second.loss_sum)
    assert torch.equal(torch.get_rng_state(), stream)
    assert same(weights(learner), before)
    assert torch.equal(gradients(learner), grads)
    assert [module.training for module in learner.model.modules()] == modes
    for left, right in zip(
        learner.snapshot()["optimizer"]["state"].values(),
        state["optimizer"]["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_evaluate_restores_the_mode_after_an_error(
    make_learner: LearnerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner()
    learner.model.train()
    monkeypatch.setattr(learner.trained.language, "token_losses", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learner.evaluate("reward")
    assert learner.model.training


def test_evaluate_names_the_source_of_a_loss_that_is_not_finite(make_learner: LearnerMaker) -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(DivergenceError, match="reward loss of source 'first' is not finite"):
        learner.evaluate("reward")


# dropout


def test_dropout_is_reproducible_and_its_own_stream(
    make_learner: LearnerMaker, plan: IntervalPlan
) -> None:
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stream = torch.get_rng_state()
        learner = make_learner("gpt2", config=DROPOUT)
        report = train(learner, plan)
        assert torch.equal(torch.get_rng_state(), stream)
        runs.append((report.step_loss, weights(learner)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    assert train(make_learner("gpt2", config=NO_DROPOUT), plan).step_loss != runs[0][0]


def test_every_step_and_micro_step_drops_something_else(
    make_learner: LearnerMaker, make_pack: PackMaker
) -> None:
    learner = make_learner("gpt2", config=DROPOUT, accumulation=2, learning_rate=1e-12)
    learner.model.train()
    steps = learner.steps.halves
    seen = set()
    for _ in range(2):
        packs = (make_pack([(0, 0)]), make_pack([(0, 0)]))
        for part, batch in enumerate(steps.micro_batches(packs)):
            with steps.dropout_stream(part):
                seen.add(float(learner.trained.language.token_losses(batch).detach().sum()))
        learner.accumulate(packs)
        learner.apply()
    assert len(seen) == 4


def test_training_leaves_the_global_streams_alone(
    make_learner: LearnerMaker, plan: IntervalPlan
) -> None:
    stream, numpy_stream = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    learner = make_learner()
    train(learner, plan)
    learner.fork()
    learner.reset()
    assert torch.equal(torch.get_rng_state(), stream)
    assert np.array_equal(np.random.get_state()[1], numpy_stream)  # noqa: NPY002


# continuing


@pytest.mark.parametrize(("kind", "config"), [("llama", {}), ("gpt2", DROPOUT)])
@pytest.mark.parametrize("way", ["restore", "restore elsewhere", "fork", "load"])
def test_continuing_is_bit_equal(
    make_learner: LearnerMaker,
    plan: IntervalPlan,
    tmp_path: Path,
    kind: str,
    config: dict[str, Any],
    way: str,
) -> None:
    learner = make_learner(kind, config=config, schedule="cosine", warmup=0.2)
    train(learner, plan)
    held_out = learner.evaluate("reward").loss_sum
    if way == "fork":
        other = learner.fork()
    elif way == "load":
        learner.save(tmp_path)
        other = make_learner(kind, config=config, schedule="cosine", warmup=0.2)
        other.load(tmp_path)
    else:
        state = learner.snapshot()
        other = learner if way == "restore" else make_learner(
            kind, config=config, schedule="cosine", warmup=0.2
        )  # fmt: skip
    wanted = [train(learner, plan, progress).step_loss for progress in (0.3, 0.6)]
    final = weights(learner)
    if way.startswith("restore"):
        other.restore(state)
    assert np.array_equal(other.evaluate("reward").loss_sum, held_out)
    assert [train(other, plan, progress).step_loss for progress in (0.3, 0.6)] == wanted
    assert same(weights(other), final)
    if way.startswith("restore"):  # and the snapshot can be used again
        other.restore(state)
        assert [train(other, plan, progress).step_loss for progress in (0.3, 0.6)] == wanted
        assert same(weights(other), final)


def test_a_fork_is_independent(make_learner: LearnerMaker, plan: IntervalPlan) -> None:
    learner = make_learner()
    train(learner, plan)
    other, before = learner.fork(), weights(learner)
    state = learner.snapshot()["optimizer"]["state"]
    train(other, plan, 0.3)
    assert same(weights(learner), before)
    for left, right in zip(
        learner.snapshot()["optimizer"]["state"].values(), state.values(), strict=True
    ):
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert other.attention == DOCUMENTS
    assert not same(weights(other), before)
    other.reset()
    assert same(weights(learner), before)


@pytest.mark.parametrize("kept", [True, False])
def test_reset_is_the_start(
    make_learner: LearnerMaker, plan: IntervalPlan, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr("mixgym.envs.learners.models.trained_model.KEPT_PARAMETERS", 0)
    learner = make_learner("gpt2", config=DROPOUT)
    before = weights(learner)
    wanted = train(learner, plan).step_loss
    after = weights(learner)
    learner.reset()
    assert same(weights(learner), before)
    assert train(learner, plan).step_loss == wanted
    assert same(weights(learner), after)


# what goes wrong


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_changes_nothing(
    make_learner: LearnerMaker, plan: IntervalPlan, value: float
) -> None:
    learner = make_learner(config={"tie_word_embeddings": False}, accumulation=2)
    train(learner, plan)
    with torch.no_grad():
        learner.model.lm_head.weight[:, 0] = value
    before, state = weights(learner), learner.snapshot()
    with pytest.raises(DivergenceError, match=r"training loss is (nan|inf) at step 4"):
        train(learner, plan, 0.3)
    found = weights(learner)
    assert all(torch.equal(found[n].nan_to_num(), before[n].nan_to_num()) for n in before)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert learner.snapshot()["steps"] == state["steps"] == 3


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(
    make_learner: LearnerMaker, plan: IntervalPlan, value: float, limit: float | None
) -> None:
    learner = make_learner(clip=limit)
    train(learner, plan)
    before = weights(learner)
    state = learner.snapshot()["optimizer"]["state"]
    hook = learner.model.model.layers[0].mlp.up_proj.weight.register_hook(
        lambda gradient: gradient * value
    )
    with pytest.raises(DivergenceError, match=r"gradient norm is (nan|inf) at step 4"):
        train(learner, plan, 0.3)
    hook.remove()
    assert same(weights(learner), before)
    for left, right in zip(
        learner.snapshot()["optimizer"]["state"].values(), state.values(), strict=True
    ):
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert math.isfinite(train(learner, plan, 0.3).step_loss[-1])


# precision and memory


def test_bf16_trains_and_stays_close_beside_an_fp32_learner(
    make_learner: LearnerMaker, plan: IntervalPlan
) -> None:
    """Two precisions in one process; weights stay float32."""
    exact, rounded = make_learner(), make_learner(model={"precision": "bf16"})
    wanted, found = train(exact, plan).step_loss, train(rounded, plan).step_loss
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.05)
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert train(make_learner(), plan).step_loss == wanted


def test_gradient_checkpointing_changes_nothing(
    make_learner: LearnerMaker, plan: IntervalPlan
) -> None:
    for kind, config in (("llama", {}), ("gpt2", DROPOUT)):
        plain = make_learner(kind, config=config)
        saving = make_learner(kind, config=config, model={"gradient_checkpointing": True})
        assert any(getattr(m, "gradient_checkpointing", False) for m in saving.model.modules())
        assert train(saving, plan).step_loss == train(plain, plan).step_loss
        saving = saving.fork()
        assert train(saving, plan, 0.3).step_loss == train(plain, plan, 0.3).step_loss
        assert same(weights(saving), weights(plain))


def test_onednn_is_true_float32_or_refused(make_learner: LearnerMaker, plan: IntervalPlan) -> None:
    from mixgym.envs.learners.models.precision import FLOAT32_ERROR, onednn_error

    before = torch.backends.mkldnn.matmul.fp32_precision
    if onednn_error() > FLOAT32_ERROR:
        with pytest.raises(ConfigError, match="fp32_matmul=onednn"):
            make_learner(model={"fp32_matmul": "onednn"})
        return
    learner = make_learner(model={"fp32_matmul": "onednn"})
    found = train(learner, plan).step_loss
    assert found == pytest.approx(train(make_learner(), plan).step_loss, rel=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_onednn_that_rounds_is_refused(
    make_learner: LearnerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixgym.envs.learners.models.precision.onednn_error", lambda: 3e-3)
    with pytest.raises(ConfigError, match=r"would round .* 3\.0e-03.*use default"):
        make_learner(model={"fp32_matmul": "onednn"})
