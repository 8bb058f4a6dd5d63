"""The bilevel rule on language models: what a pair shares, and what it leaves as it was."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.blocks import BlockDraws
from mixgym.envs.bilevel.copies import lent
from mixgym.envs.bilevel.rule import BilevelStep
from mixgym.envs.errors import ConfigError, DivergenceError, SourceError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.paired_steps import _reweighted
from mixgym.envs.sources.source import Source
from mixgym.envs.sources.splits import VALIDATION, halve_reward

LearnerMaker = Callable[..., CausalLM]
PackMaker = Callable[..., Pack]
PlanMaker = Callable[[Sequence[Sequence[Pack]]], IntervalPlan]

ESTIMATORS = ("alignment", "lookahead", "lazy_pair", "paired", "central")
STORAGES = ("full", "difference", "low_rank", "top")
DROPOUT = {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.3}


@pytest.fixture
def halved(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    return tuple(halve_reward(source, 0) for source in sources)


@pytest.fixture
def make(make_learner: LearnerMaker, halved: tuple[Source, ...]) -> LearnerMaker:
    def with_validation(*arguments: Any, **options: Any) -> CausalLM:
        return make_learner(*arguments, **{"sources": halved, "packs": 1} | options)

    return with_validation


@pytest.fixture
def plan(make_pack: PackMaker, make_plan: PlanMaker) -> IntervalPlan:
    """Six steps of two packs."""
    return make_plan(
        [
            [make_pack([(0, s), (1, s + 3)]), make_pack([(1, s + 8), (0, s + 5), (0, s + 9)])]
            for s in range(6)
        ]
    )


def rule_of(estimator: str, **options: Any) -> BilevelStep:
    defaults: dict[str, Any] = {"estimator": estimator, "check": True}
    if estimator not in ("paired", "central"):
        defaults["every"] = 2
    if estimator == "lazy_pair":
        defaults["pair_steps"] = 2
    parsed = BilevelOptions.model_validate(defaults | options)
    return BilevelStep(parsed, ("first", "second"), np.array([0.4, 0.6]), 0)


def weights(learner: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def part(plan: IntervalPlan, start: int, end: int, make_plan: PlanMaker) -> IntervalPlan:
    return make_plan(plan.steps[start:end])


# what a bilevel step leaves as it was


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_under_sampling_the_model_is_trained_as_plainly(
    make: LearnerMaker, plan: IntervalPlan, kind: str, estimator: str
) -> None:
    """u, bit for bit, dropout included: the rule only looks, and keeps a second model."""
    config = DROPOUT if kind == "gpt2" else None
    plain, other = make(kind, config=config), make(kind, config=config)
    wanted = plain.train(plan, PlainStep(), 0.0)
    rule = rule_of(estimator)
    found = other.train(plan, rule, 0.0)
    assert found.step_loss == wanted.step_loss
    assert same(weights(plain), weights(other))
    assert np.abs(rule.logits).max() > 0
    assert all(p.requires_grad and p.grad is None for p in other.model.parameters())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_evaluation_is_of_the_kept_model(
    make: LearnerMaker, plan: IntervalPlan, estimator: str
) -> None:
    plain, other = make(), make()
    plain.train(plan, PlainStep(), 0.0)
    rule = rule_of(estimator)
    other.train(plan, rule, 0.0)
    before = copy.deepcopy(rule.snapshot())
    np.testing.assert_array_equal(
        other.evaluate("reward").loss_sum, plain.evaluate("reward").loss_sum
    )
    assert before["logits"] == rule.snapshot()["logits"]


def test_lent_tensors_come_back_whatever_happens(make: LearnerMaker) -> None:
    learner = make()
    before, own = weights(learner), learner.steps.parameters()
    zeros = {name: torch.zeros_like(p) for name, p in list(own.items())[:3]}

    def interrupted() -> None:
        with lent(own, zeros):
            assert not any(bool(own[name].any()) for name in zeros)
            assert not own[list(own)[5]].requires_grad
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        interrupted()
    assert same(before, weights(learner))
    assert all(p.requires_grad for p in own.values())


def test_at_the_first_step_the_gap_is_nothing(make: LearnerMaker, plan: IntervalPlan) -> None:
    """The copy is the model and sees the same dropout masks: alpha times exactly 0."""
    for storage in ("full", "difference", "low_rank"):
        learner = make("gpt2", config=DROPOUT)
        rule = rule_of("paired", storage=storage, alpha=1e4)
        learner.model.train()
        rule.step(learner.steps, plan.steps[0])
        assert rule.gap is not None
        assert rule.gap.tolist() == [0.0, 0.0]
        assert rule.logits.tolist() == [0.0, 0.0]


# losses by source


def nll(learner: CausalLM, tokens: Any, labels: Any) -> float:
    """Summed loss of a row's supervised tokens by an ordinary call."""
    ids = torch.as_tensor(tokens, dtype=torch.int64)
    name = learner.model.config._attn_implementation
    learner.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = learner.model(ids[None], use_cache=False).logits[0]
    learner.model.set_attn_implementation(name)
    losses = cross_entropy(logits[:-1], ids[1:], reduction="none")
    return float(losses[torch.as_tensor(labels)[1:]].sum())


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_weighted_loss_counts_over_the_global_batch(
    make: LearnerMaker, plan: IntervalPlan, accumulation: int
) -> None:
    """sum_j p_j (token mean of source j), however the batch is cut."""
    learner = make(accumulation=accumulation)
    p = np.array([0.2, 0.8])
    found = learner.steps.accumulate_weighted(plan.steps[0], p)
    sums, counts = np.zeros(2), np.zeros(2)
    for pack in plan.steps[0]:
        for k, _, i in pack.rows.tolist():
            tokens, labels = learner.sources[k].splits["train"].row(i)
            sums[k] += nll(learner, tokens, labels)
            counts[k] += labels.sum()
    np.testing.assert_allclose(found[0].sum(-1), sums, rtol=1e-5)
    np.testing.assert_array_equal(learner.steps.source_counts(plan.steps[0]), counts)
    assert found[1] == pytest.approx(p @ (sums / counts), rel=1e-5)


def test_an_absent_source_counts_nothing(
    make: LearnerMaker, make_pack: PackMaker, make_plan: PlanMaker
) -> None:
    """Its weight goes to the others, its logit stays, and no NaN is seen."""
    learner = make()
    plan = make_plan([[make_pack([(0, s)])] for s in range(4)])
    rule = rule_of("paired", act="loss")
    learner.train(plan, rule, 0.0)
    assert rule.logits.tolist() == [0.0, 0.0]
    assert rule.health()["absent/second"] == 1.0
    assert rule.health()["absent/first"] == 0.0
    plain = make()
    assert learner.train(plan, PlainStep(), 0.4)
    halves = plain.steps.halves
    batches = _reweighted(halves.micro_batches(plan.steps[0]), np.array([0.3, 0.7]), plain.shape)
    assert sum(float(b.weights.sum()) for b in batches) == pytest.approx(0.3)
    assert np.isfinite(list(rule.health().values())).all()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma"])
def test_forward_mode_is_a_small_difference(
    make: LearnerMaker, plan: IntervalPlan, kind: str
) -> None:
    learner = make(kind)
    own = learner.steps.parameters()
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator) for n, p in own.items()}
    for name, d in direction.items():
        if "embed" in name:  # the pad token's embedding is 0, where a norm has no small difference
            d[0] = 0.0
    found = learner.steps.slopes(plan.steps[0], direction)
    step, sides = 1e-3, []
    for side in (step, -step):
        moved = {n: own[n].detach() + side * d for n, d in direction.items()}
        with lent(own, moved):
            sides.append(learner.steps.losses(plan.steps[0]))
    np.testing.assert_allclose(found, (sides[0] - sides[1]) / (2 * step), rtol=0.02, atol=0.02)


def test_forward_mode_is_the_gradient(make: LearnerMaker, plan: IntervalPlan) -> None:
    learner = make()
    own = learner.steps.parameters()
    counts = learner.steps.source_counts(plan.steps[0])
    learner.steps.accumulate_weighted(plan.steps[0], np.array([1.0, 0.0]))
    first = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}
    learner.model.zero_grad(set_to_none=True)
    slope = learner.steps.slopes(plan.steps[0], first).sum(-1) / counts
    square = sum(float(g.double().square().sum()) for g in first.values())
    assert slope[0] == pytest.approx(square, rel=1e-4)


# validation


def test_validation_is_weighted_by_the_target(
    make: LearnerMaker, halved: tuple[Source, ...]
) -> None:
    sources = [replace(halved[0], target=3.0), halved[1]]
    learner = make(sources=sources, packs=50)
    means = []
    for source in sources:
        rows = source.splits[VALIDATION]
        total = sum(nll(learner, *rows.row(i)) for i in range(len(rows)))
        means.append(total / rows.supervised.sum())
    loss = learner.steps.validate(0, None, 1.0)
    assert loss == pytest.approx(0.75 * means[0] + 0.25 * means[1], rel=1e-5)


def test_validation_batches_are_cycled_and_cover_the_split(make: LearnerMaker) -> None:
    learner = make()
    seen = [learner.steps.validate(index, 1, 0.0) for index in range(20)]
    period = len({round(value, 6) for value in seen})
    assert period > 1
    assert seen[0] == seen[period]
    tokens = sum(
        batch.tokens for name, group in learner.held_out.kept.items() if VALIDATION in name
        for batch in group
    )  # fmt: skip
    assert tokens == sum(s.splits[VALIDATION].lengths.sum() for s in learner.sources)


def test_sources_that_are_no_target_are_not_validated_on(
    make: LearnerMaker, halved: tuple[Source, ...]
) -> None:
    whole = make(sources=[replace(halved[0], target=0.0), halved[1]], packs=50)
    rows = halved[1].splits[VALIDATION]
    mean = sum(nll(whole, *rows.row(i)) for i in range(len(rows))) / rows.supervised.sum()
    assert whole.steps.validate(0, None, 1.0) == pytest.approx(mean, rel=1e-5)


def test_an_empty_validation_half_is_refused(make_learner: LearnerMaker) -> None:
    learner = make_learner()
    with pytest.raises(SourceError, match="validation half of the reward split is empty"):
        learner.steps.validate(0, None, 1.0)


def test_halves_are_disjoint_and_whole(sources: tuple[Source, ...]) -> None:
    for source in sources:
        half = halve_reward(source, 0)
        parts = [half.splits["reward"], half.splits[VALIDATION]]
        assert 0 <= len(parts[0]) - len(parts[1]) <= 1
        rows = [bytes(p.row(i)[0]) for p in parts for i in range(len(p))]
        whole = source.splits["reward"]
        assert sorted(rows) == sorted(bytes(whole.row(i)[0]) for i in range(len(whole)))
        for stratum in range(2):
            counts = [int((half.strata[n] == stratum).sum()) for n in ("reward", VALIDATION)]
            assert abs(counts[0] - counts[1]) <= 1
        assert half.splits["select"] is source.splits["select"]
        again, other = halve_reward(source, 0), halve_reward(source, 1)
        tokens = half.splits[VALIDATION].tokens
        np.testing.assert_array_equal(again.splits[VALIDATION].tokens, tokens)
        assert not np.array_equal(other.splits[VALIDATION].tokens, tokens)


def test_a_single_reward_row_stays_in_the_reward_split(sources: tuple[Source, ...]) -> None:
    one = replace(
        sources[0],
        splits={**sources[0].splits, "reward": sources[0].splits["reward"].take(np.arange(1))},
        strata={**sources[0].strata, "reward": np.zeros(1, np.int64)},
    )
    half = halve_reward(one, 0)
    assert (len(half.splits["reward"]), len(half.splits[VALIDATION])) == (1, 0)


# resuming


def cases() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ESTIMATORS]
    found += [("alignment", {"derivative": "forward"})]
    found += [("paired", {"storage": name}) for name in STORAGES[1:]]
    found += [
        ("paired", {"act": "loss", "blocks": 1, "block_period": 2, "keep_states": False}),
        ("lookahead", {"blocks": 1, "block_period": 2, "block_choice": "importance"}),
        ("lazy_pair", {"every": 4, "pair_steps": 3, "update": "mirror", "alpha_growth": 0.2}),
    ]
    return found


@pytest.mark.parametrize(("estimator", "options"), cases())
def test_a_snapshot_continues_bit_equal(
    make: LearnerMaker,
    plan: IntervalPlan,
    make_plan: PlanMaker,
    estimator: str,
    options: dict[str, Any],
    tmp_path: Any,
) -> None:
    """From memory, from disk, and in a fork, at an odd place; and the fork is independent."""
    learner, rule = make(), rule_of(estimator, **options)
    learner.train(part(plan, 0, 3, make_plan), rule, 0.0)
    kept = learner.snapshot(), copy.deepcopy(rule.snapshot())
    rule.save(tmp_path)
    forked = learner.fork(), rule.fork()

    def go_on(learner: CausalLM, rule: BilevelStep) -> tuple[Any, ...]:
        report = learner.train(part(plan, 3, 6, make_plan), rule, 0.3)
        return report.step_loss, weights(learner), rule.health()

    wanted = go_on(learner, rule)
    restored, read = make(), make()
    again, loaded = rule_of(estimator, **options), rule_of(estimator, **options)
    restored.restore(kept[0])
    again.restore(kept[1])
    read.restore(kept[0])
    loaded.load(tmp_path)
    for pair in (forked, (restored, again), (read, loaded)):
        found = go_on(*pair)
        assert found[0] == wanted[0]
        assert same(found[1], wanted[1])
        assert found[2] == wanted[2]


def test_a_reset_rule_starts_anew(make: LearnerMaker, plan: IntervalPlan) -> None:
    learner, rule = make(), rule_of("paired")
    learner.train(plan, rule, 0.0)
    first = rule.health()
    learner.reset()
    rule.reset()
    assert not rule.logits.any()
    learner.train(plan, rule, 0.0)
    assert rule.health() == first


# blocks


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma"])
def test_blocks_are_found_in_any_model(make: LearnerMaker, kind: str) -> None:
    learner = make(kind)
    blocks = learner.steps.blocks()
    assert len(blocks) == 2
    assert len(blocks[0]) == len(blocks[1]) > 4
    inside = {name for block in blocks for name in block}
    outside = [name for name in learner.steps.parameters() if name not in inside]
    assert 2 <= len(outside) <= 5
    assert not any(".0." in name or ".1." in name for name in outside)


@pytest.mark.parametrize("outside", ["trained", "frozen"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma"])
def test_only_drawn_blocks_move(
    make: LearnerMaker, plan: IntervalPlan, make_plan: PlanMaker, kind: str, outside: str
) -> None:
    """And over several draws all of them do: the optimiser knows every block."""
    learner = make(kind)
    rule = rule_of("paired", blocks=1, block_period=1, outside_blocks=outside)
    blocks, moved = learner.steps.blocks(), []
    for step in range(6):
        before = weights(learner)
        learner.train(part(plan, step, step + 1, make_plan), rule, step / 10)
        after = weights(learner)
        changed = {
            name
            for name in learner.steps.parameters()
            if not torch.equal(before[name], after[name])
        }
        hit = [i for i, block in enumerate(blocks) if changed & set(block)]
        assert len(hit) == 1
        moved += hit
        free = changed - {name for block in blocks for name in block}
        assert bool(free) is (outside == "trained")
    assert set(moved) == {0, 1}


@pytest.mark.parametrize("keep", [True, False])
def test_states_of_frozen_blocks_are_dropped_on_request(
    make: LearnerMaker, plan: IntervalPlan, keep: bool
) -> None:
    learner = make()
    rule = rule_of("paired", blocks=1, block_period=1, keep_states=keep)
    learner.train(plan, rule, 0.0)
    own, blocks = learner.steps.parameters(), learner.steps.blocks()
    with_state = [
        i for i, b in enumerate(blocks) if own[b[0]] in learner.optimisation.optimizer.state
    ]
    assert with_state == ([0, 1] if keep else rule._draws._active)
    copies = rule.snapshot()["copies"][0]["optimizer"]["state"]
    assert len(copies) == len(learner.optimisation.optimizer.state)


def test_important_blocks_are_drawn_more_often() -> None:
    blocks = [["a"], ["b"], ["c"], ["d"]]
    draws = BlockDraws(1, 1, "importance", seed=0)
    sizes = {"a": 1.0, "b": 1.0, "c": 8.0, "d": 1.0}
    own = {name: torch.nn.Parameter(torch.zeros(2)) for name in sizes}
    drawn = []
    for step in range(400):
        draws.draw(step, blocks)
        (index,) = draws.snapshot()["active"]
        for parameter in own.values():
            parameter.grad = None
        name = blocks[index][0]
        own[name].grad = torch.full((2,), sizes[name])
        draws.observe(own, blocks)
        drawn.append(name)
    assert sorted(drawn[:4]) == ["a", "b", "c", "d"]  # none is left out
    assert drawn.count("c") / 400 == pytest.approx(8 / 11, abs=0.06)


def test_too_many_blocks_are_refused(make: LearnerMaker, plan: IntervalPlan) -> None:
    for options in ({"blocks": 3}, {"storage": "top", "top": 3}):
        with pytest.raises(ConfigError, match="the model has 2 blocks"):
            make().train(plan, rule_of("paired", **options), 0.0)


# storage


def test_top_blocks_share_what_is_below(make: LearnerMaker, plan: IntervalPlan) -> None:
    learner, rule = make(), rule_of("paired", storage="top", top=1)
    learner.train(plan, rule, 0.0)
    (state,) = rule.snapshot()["copies"]
    assert set(state["values"]) == set(learner.steps.blocks()[1])


def test_a_low_rank_difference_is_small(make: LearnerMaker, plan: IntervalPlan) -> None:
    learner, rule = make(), rule_of("paired", storage="low_rank", rank=1)
    learner.train(plan, rule, 0.0)
    (state,) = rule.snapshot()["copies"]
    kept = sum(value.numel() for value in state["values"].values())
    assert kept < 0.25 * sum(p.numel() for p in learner.steps.parameters().values())
    assert rule.gap is not None
    assert np.abs(rule.gap).min() > 0


def test_storages_agree_on_the_gap(make: LearnerMaker, plan: IntervalPlan) -> None:
    """After one paired step under plain descent they are the same pair, low rank aside."""
    gaps = []
    for storage in ("full", "difference"):
        learner = make(clip=None)
        learner.optimisation.optimizer = torch.optim.SGD(learner.model.parameters(), lr=1e-2)  # type: ignore[assignment]
        learner.optimisation.make = lambda parameters: torch.optim.SGD(parameters, lr=1e-2)  # type: ignore
        rule = rule_of("paired", storage=storage, alpha=5.0)
        learner.train(plan, rule, 0.0)
        gaps.append(rule.gap)
    np.testing.assert_allclose(gaps[0], gaps[1], rtol=1e-3)


# the gap, and what can go wrong


def test_the_gap_does_not_depend_on_micro_steps(make: LearnerMaker, plan: IntervalPlan) -> None:
    found = []
    for accumulation in (1, 2):
        learner, rule = make(accumulation=accumulation), rule_of("paired", act="loss")
        learner.train(plan, rule, 0.0)
        found.append((rule.gap, rule.logits))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("packs", [1, 4])
def test_an_even_look_takes_every_source_alike(make: LearnerMaker, packs: int) -> None:
    learner, count = make(packs=packs), 40
    share = packs * learner._max_length / 2
    looks = [learner.steps.even_packs(index) for index in range(count)]
    assert all(pack.tokens <= pack.capacity for look in looks for pack in look)
    for k, source in enumerate(learner.sources):
        lengths, strata = source.splits["train"].lengths, source.strata["train"]
        taken = np.concatenate([pack.rows for look in looks for pack in look])
        taken = taken[taken[:, 0] == k]
        assert (strata[taken[:, 2]] == taken[:, 1]).all()
        used = lengths[taken[:, 2]].sum()
        assert count * share - lengths.max() < used <= count * share
        times = np.bincount(taken[:, 2], minlength=len(lengths))
        assert times.max() - times.min() <= 1
    again = make(packs=packs)
    for index in (3, 0, 39):
        same_rows = zip(again.steps.even_packs(index), looks[index], strict=True)
        assert all((one.rows == other.rows).all() for one, other in same_rows)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("look", ["batch", "even"])
def test_only_an_even_look_sees_what_a_batch_lacks(
    make: LearnerMaker, make_pack: PackMaker, make_plan: PlanMaker, estimator: str, look: str
) -> None:
    one_source = make_plan([[make_pack([(0, 2 * s), (0, 2 * s + 1)])] for s in range(4)])
    learner, rule = make(), rule_of(estimator, look=look, every=4, pair_steps=3)
    learner.train(one_source, rule, 0.0)
    assert rule.gap is not None
    assert rule.gap[0] != 0.0
    assert (rule.gap[1] != 0.0) == (look == "even")
    assert rule.health()["absent/second"] == 1.0


@pytest.mark.parametrize("estimator", ["alignment", "lookahead"])
def test_a_look_from_nearby_is_alpha_times_the_rise_of_the_losses(
    make: LearnerMaker, plan: IntervalPlan, make_plan: PlanMaker, estimator: str
) -> None:
    learner = make(change=lambda model: model.double())
    options = {"look": "even", "every": 1, "alpha": 1000.0, "precondition": False, "horizon": 2.0}
    rule = rule_of(estimator, **options)
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    learner.steps.validate(0, None, 1.0)
    rate = learner.steps.base_rate
    slopes = {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    look = learner.steps.even_packs(0)
    rows = [row for pack in look for row in pack.rows.tolist()]

    def means() -> np.ndarray:
        sums, counts = np.zeros(2), np.zeros(2)
        for k, _, i in rows:
            tokens, labels = learner.sources[k].splits["train"].row(i)
            sums[k] += nll(learner, tokens, labels)
            counts[k] += labels.sum()
        return sums / counts

    at_u = means()
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            parameter.sub_(slopes[name] * (2.0 * rate / 1000.0))
    wanted = 1000.0 * (means() - at_u)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            parameter.copy_(before[name])
    learner.train(part(plan, 0, 1, make_plan), rule, 0.0)
    np.testing.assert_allclose(rule.gap, wanted, rtol=1e-2)


@pytest.mark.parametrize("estimator", ["lookahead", "paired"])
def test_a_broken_gap_stops_with_its_source(
    make: LearnerMaker,
    plan: IntervalPlan,
    make_plan: PlanMaker,
    estimator: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, rule = make(), rule_of(estimator)
    learner.train(part(plan, 0, 1, make_plan), rule, 0.0)
    before = weights(learner)
    monkeypatch.setattr(
        "mixgym.envs.bilevel.estimation.summed", lambda values: values + np.array([0, np.inf])
    )
    with pytest.raises(DivergenceError, match=r"value gap of source 'second'.*lower training"):
        learner.train(part(plan, 1, 2, make_plan), rule, 0.1)
    assert same(before, weights(learner))
    assert all(p.grad is None for p in learner.model.parameters())


def test_the_health_record(make: LearnerMaker, plan: IntervalPlan) -> None:
    learner, rule = make(), rule_of("paired", travel=2.0)
    learner.train(plan, rule, 0.0)
    health = rule.health()
    assert set(health) == {
        "travel", "effective_sources", "alpha", "gap", "gap_negative",
        *(f"{part}/{name}" for part in ("weight", "logit", "gap", "absent")
          for name in ("first", "second")),
    }  # fmt: skip
    assert health["weight/first"] + health["weight/second"] == pytest.approx(1.0)
    assert (
        0 < health["travel"] <= 0.5 + 1e-9
    )  # five tenths of the budget were used at the last step
    assert 1.0 <= health["effective_sources"] <= 2.0
