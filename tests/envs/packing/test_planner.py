from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError, PackingError
from mixgym.envs.packing.balance import (
    IDLE,
    Balance,
    attention_work,
    deal,
    even_out,
    order_packs,
)
from mixgym.envs.packing.filling import greedy_fill
from mixgym.envs.packing.grouping.groups import Cluster, Group, fit_lengths, group_of
from mixgym.envs.packing.packed import Packing
from mixgym.envs.packing.packers import PACKERS
from mixgym.envs.packing.planner import (
    PackingPlan,
    PlanConfig,
    make_plan,
    schedule_steps,
    steps_needed,
)

LENGTHS = st.lists(st.integers(1, 64), max_size=120)
SEEDS = st.integers(0, 2**31)


def config(**changes: object) -> PlanConfig:
    base = PlanConfig((Group(8), Group(16, 2), Group(64, 4)), Cluster(4, 128))
    return replace(base, **changes)  # type: ignore[arg-type]


def documents_of(plan: PackingPlan) -> list[int]:
    """Documents in the order in which they are trained."""
    return [int(d) for step in plan.steps for pack in step.packs for d in plan.packing[int(pack)]]


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=25)
@given(lengths=LENGTHS, seed=SEEDS, fill=st.sampled_from([0.0, 0.25, 1.0]), sort=st.booleans())
def test_every_document_is_trained_once_in_a_pack_that_holds_it(
    packer: str, lengths: list[int], seed: int, fill: float, sort: bool
) -> None:
    asked = config(packer=packer, fill=fill, balance=Balance(sort=sort, window=2))
    plan = make_plan(np.array(lengths, np.int64), asked, seed)
    assert sorted(documents_of(plan)) == list(range(len(lengths)))
    for step in plan.steps:
        group = asked.groups[step.group]
        assert step.slots.shape == (128 // group.length // (4 // group.degree), 4 // group.degree)
        for pack in step.packs:
            inside = np.array(lengths)[plan.packing[int(pack)]]
            assert inside.sum() <= group.length
            shortest = 0 if step.group == 0 else asked.groups[step.group - 1].length
            assert shortest < inside.max() <= group.length
    assert steps_needed(np.array(lengths, np.int64), asked, seed) == len(plan.steps)


@settings(max_examples=30)
@given(lengths=LENGTHS, seed=SEEDS)
def test_idle_replicas_stand_only_in_the_last_batch_of_a_group(
    lengths: list[int], seed: int
) -> None:
    plan = make_plan(np.array(lengths, np.int64), config(), seed)
    idle = Counter(step.group for step in plan.steps if (step.slots == IDLE).any())
    assert all(count == 1 for count in idle.values())


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 64), min_size=20, max_size=80), seed=SEEDS)
def test_a_plan_is_a_pure_function_of_seed_and_period(lengths: list[int], seed: int) -> None:
    array = np.array(lengths, np.int64)
    one, two = make_plan(array, config(), seed), make_plan(array, config(), seed)
    assert one.digest() == two.digest()
    assert documents_of(one) == documents_of(two)
    others = {make_plan(array, config(), seed, period).digest() for period in (1, 2, 3)}
    assert one.digest() not in others


def test_the_digest_tells_plans_apart() -> None:
    lengths = np.arange(1, 40)
    plan = make_plan(lengths, config(), 0)
    changed = {
        make_plan(lengths, config(warm_up=3), 0).digest(),
        make_plan(lengths, config(balance=Balance(sort=False)), 0).digest(),
        make_plan(lengths[::-1].copy(), config(), 0).digest(),
        make_plan(lengths, config(), 1).digest(),
    }
    assert len(changed - {plan.digest()}) == 4


def test_a_length_on_a_boundary_belongs_to_the_shorter_group() -> None:
    groups = [Group(8), Group(16), Group(64)]
    assert group_of(np.array([1, 8, 9, 16, 17, 64]), groups).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_group_without_documents_has_no_steps() -> None:
    plan = make_plan(np.array([60, 3, 4]), config(fill=0.0), 0)
    assert sorted(step.group for step in plan.steps) == [0, 2]
    assert make_plan(np.zeros(0, np.int64), config(), 0).steps == ()


def test_greedy_fill_takes_the_longest_that_fits_and_stops_at_its_limit() -> None:
    lengths = np.array([50, 9, 4, 3, 3, 60])
    packs = Packing.of([[0], [5]])
    shorter = np.array([1, 2, 3, 4])
    filled = greedy_fill(packs, lengths, 64, shorter, 100)
    assert [sorted(lengths[pack].tolist()) for pack in filled] == [[4, 9, 50], [3, 60]]
    guarded = greedy_fill(packs, lengths, 64, shorter, 9)
    assert [sorted(lengths[pack].tolist()) for pack in guarded] == [[9, 50], [60]]
    assert greedy_fill(packs, lengths, 64, shorter, 0) is packs


def test_unbounded_fill_lets_the_hierarchy_vanish_and_the_guard_keeps_it() -> None:
    lengths = np.array([40] * 30 + [4] * 40)
    swallowed = make_plan(lengths, config(fill=1.0), 0)
    assert {step.group for step in swallowed.steps} == {2}
    kept = make_plan(lengths, config(fill=0.25), 0)
    assert {step.group for step in kept.steps} == {0, 2}


@settings(max_examples=60)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 8), SEEDS)
def test_sorting_never_adds_waiting(work: list[int], per_step: int, seed: int) -> None:
    """The sum over steps of the largest attention work is least when neighbours are alike."""

    def waiting(balance: Balance) -> int:
        order = order_packs(np.array(work), per_step, balance, np.random.default_rng(seed))
        assert sorted(order.tolist()) == list(range(len(work)))
        slots = deal(order, 1, per_step)
        return sum(max(work[pack] for pack in step.ravel() if pack != IDLE) for step in slots)

    unsorted, sorted_ = waiting(Balance(sort=False)), waiting(Balance())
    assert sorted_ <= waiting(Balance(window=2)) <= unsorted


def test_the_last_step_with_idle_replicas_is_the_lightest() -> None:
    work = np.array([5, 1, 9, 7, 3])
    slots = deal(order_packs(work, 2, Balance(), np.random.default_rng(0)), 1, 2)
    assert [work[s[s != IDLE]].tolist() for s in slots] == [[9, 7], [5, 3], [1]]


@settings(max_examples=100)
@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 4))
def test_steps_dealt_alike_have_as_few_micro_steps_as_can_be(
    packs: int, micro_steps: int, replicas: int
) -> None:
    slots = deal(np.arange(packs), micro_steps, replicas, spread=True)
    assert slots[slots != IDLE].tolist() == list(range(packs))
    busy = (slots != IDLE).any(-1)
    assert busy.sum() == -(-packs // replicas)
    assert len(slots) == -(-packs // (micro_steps * replicas))
    assert np.ptp(busy.sum(-1)) <= 1 if packs else not len(slots)
    for step in slots:  # idle places come last: the data plane leaves them out
        assert (step.ravel()[: (step != IDLE).sum()] != IDLE).all()


def test_packs_change_places_so_that_replicas_do_alike() -> None:
    slots = np.array(
        [[[0, 1, 2], [3, 4, 5], [6, 7, IDLE]], [[8, IDLE, IDLE], [IDLE] * 3, [IDLE] * 3]]
    )
    work = np.array([9, 8, 7, 6, 4, 1, 5, 3, 2])
    # replicas begin with 5, 3 and 0 of the last micro-step: 9 goes to the third, 8 to the second,
    # 7 to the first, who have 12, 11 and 9 then; 6 goes to the third, 4 to the second
    assert even_out(slots, work)[0].tolist() == [[2, 1, 0], [5, 4, 3], [6, 7, IDLE]]
    assert even_out(slots, work)[1].tolist() == slots[1].tolist()
    assert even_out(np.zeros((0, 2, 3), np.int64), work).shape == (0, 2, 3)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_evening_out_keeps_micro_steps_and_never_adds_waiting(
    work: list[int], micro_steps: int, replicas: int, seed: int
) -> None:
    amounts = np.array(work, np.int64)
    order = order_packs(amounts, micro_steps * replicas, Balance(), np.random.default_rng(seed))
    slots = deal(order, micro_steps, replicas, spread=True)
    evened = even_out(slots, amounts)
    assert (np.sort(evened, -1) == np.sort(slots, -1)).all()
    assert ((evened == IDLE) == (slots == IDLE)).all()
    loads = [np.where(s == IDLE, 0, np.append(amounts, 0)[s]).sum(1) for s in (slots, evened)]
    assert (loads[1].max(-1, initial=0) <= loads[0].max(-1, initial=0)).all()


def test_attention_work_is_inside_documents() -> None:
    packing = Packing.of([[0, 1, 2, 3], [4, 5]])
    lengths = np.array([1, 1, 1, 1, 2, 2]) * 1024
    assert (attention_work(packing, lengths) // 1024**2).tolist() == [4, 8]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 12), SEEDS)
def test_the_curriculum_only_reorders(counts: list[int], warm_up: int, seed: int) -> None:
    order = schedule_steps(np.array(counts), warm_up, np.random.default_rng(seed))
    every = [(group, which) for group, count in enumerate(counts) for which in range(count)]
    assert sorted(map(tuple, order.tolist())) == every
    assert (order[: min(warm_up, counts[0]), 0] == 0).all()


def test_over_long_documents_follow_the_policy_and_are_counted() -> None:
    lengths = np.array([10, 70, 64, 100])
    with pytest.raises(PackingError, match=r"2 documents are longer.*document 1 with 70"):
        make_plan(lengths, config(), 0)
    skipped = make_plan(lengths, config(over_long="skip"), 0)
    assert sorted(documents_of(skipped)) == [0, 2]
    assert (skipped.over_long, skipped.lost_tokens) == (2, 170)
    cut = make_plan(lengths, config(over_long="truncate"), 0)
    assert cut.lengths.tolist() == [10, 64, 64, 64]
    assert (cut.over_long, cut.lost_tokens) == (2, 42)
    with pytest.raises(PackingError, match="document 1 has 0 tokens"):
        fit_lengths(np.array([3, 0]), 64, "skip")


@pytest.mark.parametrize(
    ("groups", "cluster", "message"),
    [
        ((), Cluster(1, 64), "at least one group"),
        ((Group(0),), Cluster(1, 64), "start at 1"),
        ((Group(16), Group(8)), Cluster(1, 64), "shortest group first"),
        ((Group(16), Group(16, 2)), Cluster(2, 64), "shortest group first"),
        ((Group(16, 3),), Cluster(4, 64), "4 devices cannot be cut into groups of 3"),
        ((Group(15, 2),), Cluster(2, 60), "a length that 2 divides"),
        ((Group(64),), Cluster(4, 128), "4 replicas train 256 tokens at a time"),
    ],
)
def test_groups_that_the_cluster_cannot_train_are_refused(
    groups: tuple[Group, ...], cluster: Cluster, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PlanConfig(groups, cluster)


def test_other_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        config(fill=1.5)
    with pytest.raises(ConfigError, match="warm_up=-1"):
        config(warm_up=-1)
    with pytest.raises(ConfigError, match="window=0"):
        config(balance=Balance(window=0))
    with pytest.raises(ConfigError, match="packer=best: unknown packer"):
        config(packer="best")
