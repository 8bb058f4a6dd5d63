from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.errors import ConfigError, DivergenceError, RunError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.parallel.data_parallel import DataParallel, recompute_layers
from mixgym.envs.packing.normalisers import Weighing
from mixgym.envs.ranks import check_agreement, from_first, rank, sum_gradients, summed, world_size
from mixgym.envs.sources.source import Source

Ranks = Callable[..., list[Any]]
Learners = Callable[..., CausalLM]
Packs = Callable[..., Pack]
Plans = Callable[[Sequence[Sequence[Pack]]], IntervalPlan]


@pytest.fixture
def plan(make_pack: Packs, make_plan: Plans) -> IntervalPlan:
    """Three steps; the last has a single pack, so that a second replica is idle."""
    steps = [
        [make_pack([(0, 0), (1, 2)]), make_pack([(0, 3)]), make_pack([(1, 4), (0, 5), (1, 6)])],
        [make_pack([(0, 7), (1, 8)], weight=0.5), make_pack([(1, 9), (0, 10)])],
        [make_pack([(0, 11)])],
    ]
    return make_plan(steps)


def with_degree(plan: IntervalPlan, degrees: Sequence[int]) -> IntervalPlan:
    steps = tuple(
        tuple(replace(pack, sequence_parallel=degree) for pack in step)
        for step, degree in zip(plan.steps, degrees, strict=True)
    )
    return replace(plan, steps=steps)


def with_layers(plan: IntervalPlan, layers: Sequence[int]) -> IntervalPlan:
    steps = tuple(
        tuple(replace(pack, checkpointed_layers=count) for pack in step)
        for step, count in zip(plan.steps, layers, strict=True)
    )
    return replace(plan, steps=steps)


def trained(make: Learners, plan: IntervalPlan, **options: Any) -> dict[str, Any]:
    """What training the plan and measuring afterwards gives, in float64."""
    learner = make(change=lambda model: model.double(), **options)
    report = learner.train(plan, PlainStep(), 0.0)
    measured = learner.evaluate("reward")
    return {
        "weights": torch.cat([p.detach().ravel() for p in learner.model.parameters()]).numpy(),
        "loss_sum": report.loss_sum,
        "step_loss": np.array(report.step_loss),
        "gradient_norm": np.array(report.gradient_norm),
        "reward": measured.loss_sum,
        "counts": measured.supervised,
        "rows": measured.rows,
        "errors": measured.error,
        "source_errors": measured.source_error,
    }


def check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0.0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_as_one_process_with_any_degree(
    run_ranks: Ranks, make_learner: Learners, plan: IntervalPlan, kind: str, accumulation: int
) -> None:
    def train(degrees: Sequence[int]) -> dict[str, Any]:
        asked = with_degree(plan, degrees)
        return trained(make_learner, asked, kind=kind, accumulation=accumulation)

    wanted = train((1, 1, 1))
    for degrees in ((1, 1, 1), (2, 1, 2), (1, 2, 1)):
        for found in run_ranks(2, train, degrees):
            check_same(found, wanted)


def test_four_ranks_with_idle_replicas_train_as_one_process(
    run_ranks: Ranks, make_learner: Learners, plan: IntervalPlan
) -> None:
    wanted = trained(make_learner, plan)
    asked = with_degree(plan, (4, 2, 1))
    for found in run_ranks(4, lambda: trained(make_learner, asked)):
        check_same(found, wanted)


@pytest.mark.parametrize("name", ["token", "sample_mean", "sum", "longalign"])
def test_normalisers_weigh_as_they_say(
    make_learner: Learners,
    make_pack: Packs,
    make_plan: Plans,
    sources: tuple[Source, ...],
    name: str,
) -> None:
    """The step's loss against a sum over documents, each trained alone."""
    rows = [[(0, 0), (1, 2)], [(0, 3), (1, 5), (0, 6)]]
    flat = [row for pack in rows for row in pack]
    counts = np.array([int(sources[k].splits["train"].row(i)[1].sum()) for k, i in flat])
    weigh = Weighing(name, counts)
    weights, normaliser = weigh.step([np.array([0, 1]), np.array([2, 3, 4])], 1)
    step = [
        replace(make_pack(pack), document_weights=weight, normaliser=normaliser)
        for pack, weight in zip(rows, weights, strict=True)
    ]
    learner = make_learner(change=lambda model: model.double())
    sums = [
        learner.accumulate((make_pack([row]),))[1] * n for row, n in zip(flat, counts, strict=True)
    ]
    loss = learner.train(make_plan([step]), PlainStep(), 0.0).step_loss[0]
    per_document = {
        "token": np.full(5, 1 / counts.sum()),
        "sample_mean": 1 / (5 * counts),
        "sum": np.ones(5),
        "longalign": 1 / (5 * counts),
    }[name]
    assert loss == pytest.approx(float(np.array(sums) @ per_document), rel=1e-6)


def test_layers_are_recomputed_as_packs_ask(
    make_learner: Learners, plan: IntervalPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients stay the same; what is recomputed changes from step to step."""
    wanted = trained(make_learner, plan)
    seen = []

    def spy(model: Any, count: int) -> None:
        seen.append(count)
        recompute_layers(model, count)

    monkeypatch.setattr("mixgym.envs.learners.models.trained_model.recompute_layers", spy)
    check_same(trained(make_learner, with_layers(plan, (0, 2, 1))), wanted)
    assert seen == [2, 1]
    many = replace(plan, steps=((replace(plan.steps[0][0], checkpointed_layers=3),),))
    with pytest.raises(ConfigError, match="3 layers are to be recomputed, and Llama"):
        trained(make_learner, many)


def test_recomputed_layers_run_twice(make_learner: Learners, make_pack: Packs) -> None:
    learner = make_learner()
    calls = []
    for index, layer in enumerate(learner.model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    learner.model.train()
    learner.accumulate((replace(make_pack([(0, 0)]), checkpointed_layers=1),))
    assert sorted(calls) == [0, 0, 1]


def test_what_a_rank_cannot_do_is_refused(
    run_ranks: Ranks, make_learner: Learners, make_pack: Packs, plan: IntervalPlan
) -> None:
    learner = make_learner()
    with pytest.raises(ConfigError, match="degree 2 needs a number of processes"):
        learner.train(with_degree(plan, (2, 2, 2)), PlainStep(), 0.0)
    mixed = (make_pack([(0, 0)]), replace(make_pack([(0, 1)]), sequence_parallel=2))
    with pytest.raises(ConfigError, match="different degrees"):
        learner.accumulate(mixed)

    def refusals() -> list[str]:
        learner = make_learner()
        found = []
        try:
            learner.fork()
        except RunError as error:
            found.append(str(error))
        try:
            check_agreement("the digest", f"rank {rank()}")
        except RunError as error:
            found.append(str(error))
        others = (
            replace(plan, steps=plan.steps[rank() :]),
            with_degree(plan, (1, 1 + rank(), 1)),  # else one rank would wait for the other
            with_layers(plan, (rank(), 0, 0)),
        )
        for other in others:
            try:
                learner.train(other, PlainStep(), 0.0)
            except RunError as error:
                found.append(str(error))
        return found

    for answers in run_ranks(2, refusals):
        assert "2 processes train cannot be forked" in answers[0]
        assert "the digest of rank 1 is not that of rank 0" in answers[1]
        assert len(answers) == 5
        assert all("the plan of an interval of rank 1" in answer for answer in answers[2:])


def test_different_weights_are_refused_on_every_rank(
    run_ranks: Ranks, make_learner: Learners
) -> None:
    def start() -> str:
        def moved(model: Any) -> Any:
            with torch.no_grad():
                next(model.parameters()).add_(float(rank()))
            return model

        try:
            make_learner(change=moved)
        except RunError as error:
            return str(error)
        return ""

    assert all("the sum of all weights of rank 1" in text for text in run_ranks(2, start))


def test_a_loss_that_diverges_on_one_rank_stops_all(
    run_ranks: Ranks, make_learner: Learners, plan: IntervalPlan
) -> None:
    def train() -> tuple[str, bool]:
        learner = make_learner()
        if rank() == 1:
            hook = learner.model.lm_head.register_forward_hook(lambda *a: a[-1] * float("nan"))
        before = [p.detach().clone() for p in learner.model.parameters()]
        try:
            learner.train(plan, PlainStep(), 0.0)
        except DivergenceError as error:
            if rank() == 1:
                hook.remove()
            kept = all(
                torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True)
            )
            return str(error), kept
        return "", False

    for message, kept in run_ranks(2, train):
        assert "the training loss is nan at step 1" in message
        assert kept


def collectives() -> dict[str, Any]:
    """Sums, broadcasts and gradients of two ranks with different numbers."""
    me = rank()
    module = torch.nn.Linear(2, 2)
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    if me == 0:
        module.weight.grad = torch.full((2, 2), 3.0)
    module.bias.grad = torch.full((2,), float(me + 1))
    sum_gradients([*module.parameters(), frozen])
    assert module.weight.grad is not None
    assert module.bias.grad is not None
    check_agreement("nothing", "same")
    return {
        "world": world_size(),
        "sum": summed(np.array([me + 1.0, 10.0])).tolist(),
        "first": from_first({"rank": me}),
        "weight": module.weight.grad.tolist(),
        "bias": module.bias.grad.tolist(),
        "frozen": frozen.grad,
    }


def test_collectives_of_two_ranks(run_ranks: Ranks) -> None:
    wanted = {
        "world": 2,
        "sum": [3.0, 20.0],
        "first": {"rank": 0},
        "weight": [[3.0, 3.0], [3.0, 3.0]],
        "bias": [3.0, 3.0],
        "frozen": None,
    }
    assert run_ranks(2, collectives) == [wanted, wanted]


def test_alone_everything_is_its_own_sum(make_learner: Learners, make_pack: Packs) -> None:
    assert (world_size(), rank()) == (1, 0)
    assert from_first(5) == 5
    assert summed(np.array([2.0])).tolist() == [2.0]
    check_agreement("anything", "whatever")
    ranks = DataParallel(make_learner().model.config)
    packs = (make_pack([(0, 0)]), make_pack([(0, 1)]))
    assert ranks.mine(packs)[0] == packs
