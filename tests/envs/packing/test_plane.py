from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget, IntervalPlan
from mixgym.envs.packing.balance import Balance, freedom
from mixgym.envs.packing.costs.cost_model import CostModel
from mixgym.envs.packing.costs.descriptions import HARDWARE, MODELS
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.normalisers import Weighing
from mixgym.envs.packing.packing_options import PackingOptions
from mixgym.envs.packing.plane import PackedPlane
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.envs.packing.setup import (
    PackingSetup,
    PackingTask,
    find_hardware,
    hardware_text,
    make_setup,
    warnings_of,
)
from mixgym.envs.packing.whole_run import WholeRunPlane
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport
from mixgym.envs.spaces.mixture import Mixture

CLUSTER = Cluster(2, 128)


def sources(seed: int = 0, count: int = 300, max_epochs: float | None = None) -> list[Source]:
    """Short rows, and rows of up to 64 tokens; half of the tokens are supervised."""
    generator = np.random.default_rng(seed)
    made = []
    for name, longest in (("short", 16), ("long", 64)):
        lengths = generator.integers(2, longest + 1, count)
        rows = [(np.zeros(n, np.int32), np.arange(n) >= max(1, n // 2)) for n in lengths]
        splits = {"train": EncodedRows.from_lists(rows)}
        strata = {"train": np.zeros(count, np.int64)}
        made.append(
            Source(name, 1.0, splits, strata, 1, max_epochs, SourceReport("synthetic", "text"))
        )
    return made


def setup(**changes: Any) -> PackingSetup:
    parts: dict[str, Any] = {
        "groups": (Group(16), Group(64, 2, 3)),
        "cluster": CLUSTER,
        "spread": True,
    }
    own = {key: changes.pop(key) for key in list(changes) if key in ("balance", "packer", "fill")}
    return PackingSetup(PlanConfig(**(parts | own)), **changes)


def plane(given: Sequence[Source], how: PackingSetup, seed: int = 0) -> PackedPlane:
    return PackedPlane(given, unit="supervised_tokens", capacity=64, packs=2, seed=seed, setup=how)


EVEN = Mixture.of([0.5, 0.5], [[1.0], [1.0]])


def rows_of(plans: Sequence[IntervalPlan]) -> list[tuple[int, ...]]:
    return [
        tuple(row) for p in plans for step in p.steps for pack in step for row in pack.rows.tolist()
    ]


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(2, 9), st.booleans())
def test_intervals_with_groups_train_every_row_in_a_pack_of_its_group(
    seed: int, steps: int, sort: bool
) -> None:
    given, how = sources(seed), setup(balance=Balance(sort=sort))
    data = plane(given, how, seed)
    for _ in range(3):
        plan = data.plan(EVEN, Budget(steps))
        assert len(plan.steps) <= steps
        for step in plan.steps:
            kinds = {(p.capacity, p.sequence_parallel, p.checkpointed_layers) for p in step}
            assert kinds in ({(16, 1, 0)}, {(64, 2, 3)})
            assert sum(pack.capacity for pack in step) <= 128
            for pack in step:
                assert pack.tokens <= pack.capacity
                assert (pack.lengths.max() > 16) == (pack.capacity == 64)
                own = [given[k].splits["train"].lengths[i] for k, _, i in pack.rows.tolist()]
                assert pack.lengths.tolist() == own
        counted = rows_of([plan])
        assert len(set(counted)) == len(counted) == plan.rows.sum()
        assert plan.packing["steps"] == len(plan.steps)
    if steps >= 4:
        assert plan.supervised.sum(-1) / plan.supervised.sum() == pytest.approx([0.5] * 2, abs=0.1)


def test_a_plane_with_groups_goes_on_the_same_from_a_snapshot() -> None:
    one, two = plane(sources(), setup(warm_up=9)), plane(sources(), setup(warm_up=9), seed=5)
    one.plan(EVEN, Budget(4))
    two.restore(one.snapshot())
    for _ in range(2):
        assert rows_of([one.plan(EVEN, Budget(4))]) == rows_of([two.plan(EVEN, Budget(4))])


def test_the_warm_up_counts_steps_of_the_run() -> None:
    data = plane(sources(), setup(warm_up=5))
    plans = [data.plan(EVEN, Budget(8)) for _ in range(2)]
    first = [step[0].capacity for step in plans[0].steps]
    shorts = first.count(16)
    assert first[: min(5, shorts)] == [16] * min(5, shorts)
    fresh = plane(sources(), setup())
    fresh.plan(EVEN, Budget(8))
    assert rows_of([plans[1]]) == rows_of([fresh.plan(EVEN, Budget(8))])


def test_packs_carry_the_weights_of_the_normaliser() -> None:
    data = plane(sources(), setup(normaliser="sample_mean"))
    given = sources()
    plan = data.plan(EVEN, Budget(4))
    for step in plan.steps:
        assert {pack.normaliser for pack in step} == {1.0}
        replicas = 2 // step[0].sequence_parallel
        counts = np.zeros(replicas)
        for place, pack in enumerate(step):
            counts[place % replicas] += len(pack.rows)
        for place, pack in enumerate(step):
            own = [given[k].splits["train"].supervised[i] for k, _, i in pack.rows.tolist()]
            wanted = 1 / (replicas * counts[place % replicas] * np.array(own))
            assert pack.document_weights == pytest.approx(wanted)
    plain = plane(given, setup()).plan(EVEN, Budget(4))
    assert all(p.document_weights is None and p.normaliser is None for s in plain.steps for p in s)
    assert Weighing("sum", np.zeros(0, np.int64)).step([], 2) == ([], None)


def test_metrics_and_predicted_seconds_stand_in_the_plan() -> None:
    cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["32xh100"])
    plan = plane(sources(), setup(cost=cost)).plan(EVEN, Budget(6))
    found = plan.packing
    assert found["seconds"] == pytest.approx(sum(plan.step_seconds))
    assert len(plan.step_seconds) == len(plan.steps)
    assert found["no_wait_seconds"] <= found["seconds"]
    assert found["steps_of_group_0"] + found["steps_of_group_1"] == len(plan.steps)
    assert found["communication"] == pytest.approx(found["steps_of_group_1"] / len(plan.steps))
    assert found["freedom"] == 0
    assert plane(sources(), setup()).plan(EVEN, Budget(2)).step_seconds == ()


def whole(seed: int = 0, steps: int = 12, **changes: Any) -> WholeRunPlane:
    given = sources(max_epochs=changes.pop("max_epochs", None))
    return WholeRunPlane(plane(given, setup(**changes), seed), Budget(steps), given)


def test_a_run_packed_at_once_hands_out_the_same_rows_interval_by_interval() -> None:
    cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["32xh100"])
    data = whole(cost=cost)
    at_once = plane(sources(), setup(cost=cost)).plan(EVEN, Budget(12))
    plans = [data.plan(EVEN, Budget(5)) for _ in range(3)]
    assert rows_of(plans) == rows_of([at_once])
    for name in ("rows", "tokens", "supervised"):
        assert (sum(getattr(p, name) for p in plans) == getattr(at_once, name)).all()
    assert sum(p.packing["seconds"] for p in plans) == pytest.approx(at_once.packing["seconds"])
    assert data.plan(EVEN, Budget(5)).steps == ()


def test_a_run_packed_at_once_resumes_to_the_same_steps() -> None:
    one, two = whole(), whole(seed=3)
    one.plan(EVEN, Budget(5))
    two.restore(one.snapshot())
    assert (one.epochs() == two.epochs()).all()
    assert rows_of([one.plan(EVEN, Budget(5))]) == rows_of([two.plan(EVEN, Budget(5))])
    fresh = whole()
    other = whole(seed=1)
    other.restore(fresh.snapshot())
    assert rows_of([other.plan(EVEN, Budget(3))]) == rows_of([fresh.plan(EVEN, Budget(3))])


def test_a_run_packed_at_once_is_available_to_its_end() -> None:
    data = whole(steps=1000, max_epochs=1.0)
    assert data.epochs().max() == 0
    last = data.plan(EVEN, Budget(5))
    assert not last.exhausted
    assert data.available().all()
    while not last.exhausted:
        last = data.plan(EVEN, Budget(50))
    assert not data.available().any()
    assert data.epochs().min() == pytest.approx(1.0)


def test_a_schedule_that_changes_cannot_be_packed_at_once() -> None:
    data = whole()
    data.plan(EVEN, Budget(2))
    with pytest.raises(ConfigError, match=r"pool=run.*the mixture has changed by 0.100"):
        data.plan(Mixture.of([0.6, 0.4], [[1.0], [1.0]]), Budget(2))


# from options


def task(**changes: Any) -> PackingTask:
    lengths = np.random.default_rng(0).integers(1, 65, 500)
    return PackingTask(**({"lengths": lengths, "max_length": 64, "packs": 8} | changes))


def test_the_default_is_one_length_at_random_in_one_process() -> None:
    made = make_setup(PackingOptions(), task())
    assert made.config.groups == (Group(64),)
    assert not made.config.balance.sort
    assert made.config.cluster == Cluster(1, 512)
    assert not make_setup(PackingOptions(), task(processes=2)).config.balance.sort
    assert make_setup(PackingOptions(balance="sort"), task()).config.balance.sort
    assert not make_setup(PackingOptions(balance="none"), task(processes=2)).config.balance.sort


GROUPS = [{"length": 16}, {"length": 64}]


@pytest.mark.parametrize("asked", [{}, {"balance": "none"}, {"groups": GROUPS}, {"pool": "run"}])
@pytest.mark.parametrize("rows", [37, 150])
def test_steps_do_not_depend_on_how_many_processes_train_them(
    asked: dict[str, Any], rows: int
) -> None:
    """Which documents share a step, step by step; also where packs do not fill the last steps."""
    found = []
    lengths = np.random.default_rng(rows).integers(1, 65, rows)
    for processes in (1, 2, 4, 8):
        options = PackingOptions.model_validate(asked)
        config = make_setup(options, task(processes=processes, lengths=lengths)).config
        plan = make_plan(lengths, config, seed=5)
        found.append(
            [
                sorted(int(i) for pack in step.packs for i in plan.packing[int(pack)])
                for step in plan.steps
            ]
        )
    assert all(steps == found[0] for steps in found[1:])


def test_sorted_steps_are_whole_micro_steps_where_that_is_asked_for() -> None:
    """Ten packs in steps of eight: five and five, or six and four for two processes."""
    lengths = np.full(10, 64)
    sizes = {}
    for balance in ("auto", "sort"):
        options = PackingOptions.model_validate({"balance": balance})
        config = make_setup(options, task(processes=2, lengths=lengths)).config
        sizes[balance] = sorted(len(s.packs) for s in make_plan(lengths, config, seed=0).steps)
    assert sizes == {"auto": [5, 5], "sort": [4, 6]}


def test_groups_can_be_stated_or_chosen() -> None:
    listed = PackingOptions.model_validate(
        {"groups": [{"length": 16}, {"length": 64, "degree": 2, "checkpointed": 1}]}
    )
    assert make_setup(listed, task(processes=2)).config.groups == (Group(16), Group(64, 2, 1))
    chosen = make_setup(
        PackingOptions(groups="auto"), task(processes=2, model=MODELS["llama-3.1-8b"])
    )
    assert chosen.config.groups[-1].length == 64
    assert chosen.cost is not None
    assert chosen.cost.hardware.devices == 2


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"groups": "auto"}, {}, "the cost of this model is unknown"),
        ({"groups": [{"length": 32}]}, {}, "longest group has 32 tokens, and data.max_length is"),
        ({"groups": [{"length": 64, "degree": 2}]}, {}, "1 devices cannot be cut into groups of 2"),
        ({"hardware": "gpu"}, {}, "hardware=gpu: is neither a stated machine"),
        ({}, {"processes": 3}, "3 replicas train 192 tokens at a time"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_setup(PackingOptions.model_validate(options), task(**changes))


def test_machines_are_read_from_files(tmp_path: Any) -> None:
    path = tmp_path / "machine.json"
    path.write_text(hardware_text(HARDWARE["32xh100"], fitted="yes"))
    assert find_hardware(str(path)) == HARDWARE["32xh100"]
    text = path.read_text()
    for broken, reason in (
        (text.replace('"dense_rate": 458000000000000.0', '"dense_rate": 0'), "above 0"),
        (text.replace("dense_rate", "dense"), "missing or unknown"),
        ("[1]", "describe a machine"),
        ("{", "describe a machine"),
    ):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=reason):
            find_hardware(str(path))


def test_a_small_pool_is_a_warning_where_it_matters() -> None:
    assert warnings_of(setup(), 8) == []
    assert "an interval has 5 steps of 2 packs" in warnings_of(setup(), 5)[0]
    assert warnings_of(setup(whole_run=True), 5) == []
    assert warnings_of(make_setup(PackingOptions(), task()), 2) == []


def test_freedom_falls_with_the_window() -> None:
    values = [freedom(64, 8, Balance(window=w)) for w in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert values[-1] == 0
    assert freedom(0, 8, Balance()) == 1
