import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.costs.metrics import imbalance, measure
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.layout import Layout
from mixgym.envs.packing.planner import PlanConfig, make_plan


def layout(rows: list[list[list[int]]], degree: int = 1, capacity: int = 16) -> Layout:
    """A layout from the documents of each replica in each row, one row a step."""
    units = [(row, n, np.array(d)) for row, r in enumerate(rows) for n, d in enumerate(r) if d]
    tokens = np.array([d.sum() for *_, d in units], np.int64)
    return Layout(
        (Group(capacity, degree),),
        Cluster(len(rows[0]) * degree, 10**6),
        row_group=np.zeros(len(rows), np.int64),
        row_step=np.arange(len(rows)),
        row=np.array([row for row, *_ in units], np.int64),
        replica=np.array([n for _, n, _ in units], np.int64),
        tokens=tokens,
        slots=tokens,
        work=np.array([(d**2).sum() for *_, d in units], np.int64),
    )


def test_imbalance_by_hand() -> None:
    assert imbalance(np.array([4, 8])) == 0.25
    assert imbalance(np.array([1, 0, 0, 0])) == 0.75
    assert imbalance(np.zeros(4)) == 0
    assert imbalance(np.array([5, 5, 5])) == 0


def test_equal_tokens_hide_unequal_attention() -> None:
    """Four documents of 1 beside two of 2 hold 4 tokens each, and cost 4 and 8."""
    found = measure(layout([[[1, 1, 1, 1], [2, 2]]]))
    assert found.data_imbalance == 0
    assert found.attention_imbalance == 0.25
    assert found.tokens_per_device == 4


def test_idle_replicas_count_as_waiting_and_steps_are_averaged() -> None:
    found = measure(layout([[[2], [2]], [[4], []]]))
    assert found.attention_imbalance == pytest.approx((0 + 0.5) / 2)
    assert found.data_imbalance == pytest.approx(0.25)
    assert (found.steps, found.micro_steps, found.units) == (2, 2, 3)
    assert found.fill == pytest.approx(8 / 48)
    assert found.tokens_per_device == pytest.approx(2)


def test_communication_is_the_share_of_steps_with_shared_packs() -> None:
    plan = make_plan(
        np.array([3] * 40 + [60, 60]),
        PlanConfig((Group(8), Group(64, 4)), Cluster(4, 64), fill=0.0),
        0,
    )
    found = measure(plan.layout)
    long = sum(step.group == 1 for step in plan.steps)
    assert found.communication == pytest.approx(long / len(plan.steps))
    assert found.padding == 0


def test_micro_steps_are_averaged_inside_a_step() -> None:
    one = Layout(
        (Group(16),),
        Cluster(2, 64),
        row_group=np.zeros(3, np.int64),
        row_step=np.array([0, 0, 1]),
        row=np.array([0, 0, 1, 2, 2]),
        replica=np.array([0, 1, 0, 0, 1]),
        tokens=np.array([4, 4, 4, 4, 2]),
        slots=np.array([4, 4, 4, 4, 4]),
        work=np.array([4, 2, 4, 4, 4]),
    )
    found = measure(one)
    assert found.attention_imbalance == pytest.approx(((0.25 + 0.5) / 2 + 0) / 2)
    assert found.padding == pytest.approx(2 / 20)


def test_nothing_measures_as_nothing() -> None:
    plan = make_plan(np.zeros(0, np.int64), PlanConfig((Group(8),), Cluster(1, 8)), 0)
    assert measure(plan.layout).to_dict()["steps"] == 0


@settings(max_examples=40)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=80), st.integers(0, 99), st.booleans())
def test_metrics_are_those_of_a_literal_count(lengths: list[int], seed: int, sort: bool) -> None:
    config = PlanConfig(
        (Group(16), Group(64, 2)), Cluster(4, 128), balance=Balance(sort=sort), fill=0.25
    )
    plan = make_plan(np.array(lengths), config, seed)
    data, attention, shared = [], [], []
    for step in plan.steps:
        documents = [
            [np.array(lengths)[plan.packing[int(p)]] if p >= 0 else np.zeros(0) for p in row]
            for row in step.slots
        ]
        data.append(np.mean([imbalance(np.array([d.sum() for d in r])) for r in documents]))
        attention.append(
            np.mean([imbalance(np.array([(d**2).sum() for d in r])) for r in documents])
        )
        shared.append(config.groups[step.group].degree > 1)
    found = measure(plan.layout)
    assert found.data_imbalance == pytest.approx(np.mean(data))
    assert found.attention_imbalance == pytest.approx(np.mean(attention))
    assert found.communication == pytest.approx(np.mean(shared))
    assert found.tokens_per_device == pytest.approx(sum(lengths) / len(plan.steps) / 4)
