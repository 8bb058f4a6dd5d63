import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import MixgymError, PackingError
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.envs.packing.plane import PackedPlane
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture

from ..synthetic import make_source, random_sources

SEEDS = st.integers(0, 2**31)


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    return [p.tolist() for p in best_fit_decreasing(np.array(lengths, np.int64), capacity)]


def first_quadratic(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing as in a textbook, by looking at every pack."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        open_ = [p for p in packs if sum(p) + length <= capacity]
        if open_:
            max(open_, key=sum).append(length)
        else:
            packs.append([length])
    return packs


def test_the_worked_example_packs_perfectly() -> None:
    lengths = [6, 5, 5, 4, 3, 7, 2, 8]
    found = sorted(sorted(lengths[i] for i in p) for p in pack(lengths, 10))
    assert found == [[2, 8], [3, 7], [4, 6], [5, 5]]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], []), ([10], [[0]]), ([1], [[0]]), ([10, 10], [[0], [1]]), ([4, 4, 4], [[0, 1], [2]])],
)
def test_small_cases(lengths: list[int], expected: list[list[int]]) -> None:
    assert pack(lengths, 10) == expected


def test_a_pack_may_be_filled_to_the_last_token() -> None:
    assert pack([3, 3, 4], 10) == [[2, 0, 1]]


def test_errors_name_the_document() -> None:
    with pytest.raises(PackingError, match="document 1 has 11 tokens and a pack holds 10"):
        pack([3, 11], 10)
    with pytest.raises(PackingError, match="document 2 is empty"):
        pack([3, 4, 0], 10)


@settings(max_examples=150)
@given(st.integers(1, 64).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c)))))
def test_best_fit_invariants(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    packs = pack(lengths, capacity)
    assert sorted(i for p in packs for i in p) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in p) for p in packs]
    assert all(0 < u <= capacity for u in used)
    assert len(packs) >= -(-sum(lengths) // capacity)
    assert sum(2 * u <= capacity for u in used) <= 1
    # any two packs together hold more than one could
    assert all(a + b > capacity for i, a in enumerate(used) for b in used[:i])
    assert sorted(used) == sorted(map(sum, first_quadratic(lengths, capacity)))


# the data plane


def plane(
    sources: list[Source], *, unit: str = "supervised_tokens", packs: int = 4, seed: int = 0
) -> PackedPlane:
    return PackedPlane(sources, unit=unit, capacity=32, packs=packs, seed=seed)  # type: ignore[arg-type]


def uniform(sources: list[Source]) -> Mixture:
    count, strata = len(sources), sources[0].n_strata
    return Mixture.of(np.ones(count) / count, np.ones((count, strata)) / strata)


def rows_of(plan: IntervalPlan) -> np.ndarray:
    packs = [p.rows for step in plan.steps for p in step]
    return np.concatenate(packs) if packs else np.zeros((0, 3), np.int64)


def check_plan(plan: IntervalPlan, sources: list[Source], budget: Budget, packs: int) -> None:
    """What every plan keeps, counted row by row."""
    assert len(plan.steps) <= budget.steps
    totals = np.zeros((3, *plan.rows.shape), np.int64)
    for step in plan.steps:
        assert 1 <= len(step) <= packs
        for p in step:
            assert 0 < p.tokens <= p.capacity == 32
            assert (p.weight, p.sequence_parallel, p.checkpointed_layers) == (1.0, 1, 0)
            for (k, g, row), length in zip(p.rows.tolist(), p.lengths.tolist(), strict=True):
                train = sources[k].splits["train"]
                assert sources[k].strata["train"][row] == g
                tokens, labels = train.row(row)
                assert len(tokens) == length
                totals[:, k, g] += [1, length, int(labels.sum())]
    assert np.array_equal(totals, [plan.rows, plan.tokens, plan.supervised])
    sizes = [len(step) for step in plan.steps]
    assert not sizes or max(sizes) - min(sizes) <= 1
    if budget.supervised is not None:
        assert plan.supervised.sum() <= budget.supervised
    if budget.tokens is not None:
        assert plan.tokens.sum() <= budget.tokens


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6), st.sampled_from(["supervised_tokens", "tokens", "rows"]))
def test_every_plan_keeps_its_bounds_and_counts_what_is_in_it(
    seed: int, steps: int, unit: str
) -> None:
    rng = np.random.default_rng(seed)
    sources = random_sources(rng)
    packs = int(rng.integers(1, 5))
    data = plane(sources, unit=unit, packs=packs, seed=seed)
    for _ in range(3):
        if not data.available().any():
            break
        most = int(rng.integers(1, 400)) if rng.random() < 0.7 else None
        budget = Budget(steps, most) if rng.random() < 0.5 else Budget(steps, tokens=most)
        check_plan(data.plan(uniform(sources), budget), sources, budget, packs)


@settings(max_examples=20)
@given(SEEDS)
def test_the_same_seed_plans_the_same_and_goes_on_the_same_from_a_snapshot(seed: int) -> None:
    sources = random_sources(np.random.default_rng(seed))
    one, two = plane(sources, seed=seed), plane(sources, seed=seed)
    mixture, budget = uniform(sources), Budget(3)
    first = [one.plan(mixture, budget) for _ in range(2)]
    for plan in first:
        check_equal(two.plan(mixture, budget), plan)
    kept = one.snapshot()
    third = plane(sources, seed=seed + 1)
    third.restore(kept)
    if one.available().any():
        check_equal(third.plan(mixture, budget), one.plan(mixture, budget))


def check_equal(one: IntervalPlan, two: IntervalPlan) -> None:
    assert [len(step) for step in one.steps] == [len(step) for step in two.steps]
    assert rows_of(one).tolist() == rows_of(two).tolist()
    assert (one.balanced, one.exhausted) == (two.balanced, two.exhausted)


def test_another_seed_is_another_order() -> None:
    sources = [make_source("a", [8] * 64), make_source("b", [8] * 64)]
    plans = [plane(sources, seed=seed).plan(uniform(sources), Budget(2)) for seed in (0, 1)]
    assert rows_of(plans[0]).tolist() != rows_of(plans[1]).tolist()


def test_packs_are_dealt_evenly_to_steps() -> None:
    sources = [make_source("a", [32] * 100)]
    plan = plane(sources, packs=4).plan(uniform(sources), Budget(3))
    assert [len(step) for step in plan.steps] == [4, 4, 4]
    assert plan.tokens.sum() == 3 * 4 * 32
    assert not plan.exhausted


def test_too_few_rows_make_fewer_steps_and_say_so() -> None:
    sources = [make_source("a", [32] * 5, max_epochs=1.0)]
    data = plane(sources, packs=2)
    plan = data.plan(uniform(sources), Budget(10))
    assert [len(step) for step in plan.steps] == [2, 2, 1]
    assert plan.exhausted
    assert not data.available().any()


def test_all_used_up_gives_an_empty_plan() -> None:
    sources = [make_source("a", [8] * 3, max_epochs=1.0)]
    data = plane(sources)
    data.plan(uniform(sources), Budget(10))
    plan = data.plan(uniform(sources), Budget(10))
    assert plan.steps == ()
    assert plan.exhausted
    assert plan.rows.sum() == 0


def test_a_source_that_runs_dry_hands_its_share_to_the_others_within_the_interval() -> None:
    sources = [make_source("a", [8] * 4, max_epochs=1.0), make_source("b", [8] * 500)]
    plan = plane(sources).plan(uniform(sources), Budget(4))
    assert plan.rows.ravel().tolist() == [4, 4 * 4 * 4 - 4]
    assert plan.tokens.sum() == 4 * 4 * 32
    assert not plan.exhausted


def test_a_mixture_whose_only_source_runs_dry_ends_there() -> None:
    sources = [make_source("a", [8] * 4, max_epochs=1.0), make_source("b", [8] * 500)]
    data = plane(sources)
    alone = Mixture.of([1.0, 0.0], [[1.0], [1.0]])
    plan = data.plan(alone, Budget(4))
    assert plan.exhausted
    assert plan.rows.ravel().tolist() == [4, 0]
    with pytest.raises(MixgymError, match="raise max_epochs"):
        data.plan(alone, Budget(4))


def test_a_stratum_that_runs_dry_hands_its_share_to_the_rest_of_its_source() -> None:
    sources = [make_source("a", [8] * 100, strata=[0] * 4 + [1] * 96, n_strata=2, max_epochs=1.0)]
    plan = plane(sources).plan(Mixture.of([1.0], [[1.0, 0.0]]), Budget(2))
    assert plan.rows.tolist() == [[4, 28]]
    assert not plan.exhausted


def test_the_budget_of_supervised_tokens_is_never_passed_and_ends_the_run() -> None:
    sources = [make_source("a", [8] * 500, supervised=[5] * 500)]
    data = plane(sources)
    plan = data.plan(uniform(sources), Budget(100, 52))
    assert plan.supervised.sum() == 50
    assert plan.exhausted
    whole = data.plan(uniform(sources), Budget(1, 10_000))
    assert not whole.exhausted


@pytest.mark.parametrize("budget", [Budget(100, tokens=83), Budget(100, 999, 83)])
def test_the_budget_of_tokens_read_is_never_passed_and_ends_the_run(budget: Budget) -> None:
    sources = [make_source("a", [8] * 500, supervised=[5] * 500)]
    plan = plane(sources).plan(uniform(sources), budget)
    assert plan.tokens.sum() == 80
    assert plan.exhausted


def test_a_budget_is_cut_alike_in_either_unit() -> None:
    """Where all tokens but one of every row are supervised, the two budgets end at one row."""
    lengths = np.random.default_rng(0).integers(2, 20, 300)
    sources = [make_source("a", lengths.tolist(), supervised=(lengths - 1).tolist())]
    plans = [
        plane(sources).plan(uniform(sources), Budget(100, supervised=200)),
        plane(sources).plan(uniform(sources), Budget(100, tokens=200)),
    ]
    read, supervised = int(plans[1].tokens.sum()), int(plans[0].supervised.sum())
    first = plane(sources).plan(uniform(sources), Budget(100, tokens=int(plans[0].tokens.sum())))
    check_equal(first, plans[0])
    assert 200 - 20 < supervised <= 200
    assert 200 - 20 < read <= 200


def test_a_budget_smaller_than_the_next_row_gives_an_empty_plan() -> None:
    sources = [make_source("a", [8] * 50, supervised=[5] * 50)]
    plan = plane(sources).plan(uniform(sources), Budget(10, 4))
    assert plan.steps == ()
    assert plan.exhausted


def test_fewer_packs_than_room_is_not_the_end() -> None:
    """Stopping at a balance point may leave a step's room unused; there is more to come."""
    short = make_source("a", [3] * 400)
    long = make_source("b", [32] * 400)
    data = PackedPlane([short, long], unit="tokens", capacity=32, packs=1, seed=0)
    plans = [data.plan(Mixture.of([0.7, 0.3], [[1.0], [1.0]]), Budget(10)) for _ in range(12)]
    assert not any(plan.exhausted for plan in plans)
    assert all(8 <= len(plan.steps) <= 10 for plan in plans)
