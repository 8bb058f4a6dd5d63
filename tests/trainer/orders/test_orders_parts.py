"""Orders, planes and the analysis of positions, against hand-worked numbers and other formulas."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Budget
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport
from mixgym.envs.spaces.mixture import Mixture
from mixgym.trainer.orders.analysis import (
    beside_other_runs,
    binned_loss,
    correlation,
    gap,
    position_effect,
    ranks,
    slope,
)
from mixgym.trainer.orders.plane import (
    Kind,
    OrderedPlane,
    all_rows,
    choose_rows,
    epoch_batches,
    even_shares,
    positions,
)
from mixgym.trainer.orders.runs import marks


def source(name: str, lengths: Sequence[int]) -> Source:
    """Rows of the given lengths in train and select; two strata, odd rows in the second."""
    rows = EncodedRows.from_lists(
        [(np.arange(n, dtype=np.int32), np.arange(n) >= n // 2) for n in lengths]
    )
    splits = dict.fromkeys(("train", "select"), rows)
    strata = dict.fromkeys(splits, np.arange(len(lengths)) % 2)
    return Source(name, 1.0, splits, strata, 2, None, SourceReport("test", "text"))


SOURCES = [source("a", [4, 6, 2]), source("b", [3, 5, 7, 9, 2])]
MIXTURE = Mixture(np.full(2, 0.5), np.full((2, 2), 0.5))


# --- rows and orders ------------------------------------------------------------------------------


def test_rows_are_drawn_evenly_and_named() -> None:
    rows = choose_rows(SOURCES, 6, seed=0)
    assert [name.split(":")[0] for name in rows.names] == ["a"] * 3 + ["b"] * 3
    assert rows.names[:3] == ("a:0", "a:1", "a:2")
    for name, (k, stratum, row), length, supervised in zip(
        rows.names, rows.where.tolist(), rows.lengths, rows.supervised, strict=True
    ):
        tokens, labels = SOURCES[k].splits["train"].row(row)
        assert name == f"{SOURCES[k].name}:{row}"
        assert (stratum, length, supervised) == (row % 2, len(tokens), labels.sum())
    assert choose_rows(SOURCES, 6, seed=0).names == rows.names
    drawn = {choose_rows(SOURCES, 6, seed=s).names for s in range(20)}
    assert len(drawn) > 3, "another seed draws other rows"
    assert len(choose_rows(SOURCES, None, seed=0)) == len(all_rows(SOURCES, "select")) == 8


def test_one_row_cannot_be_ordered() -> None:
    with pytest.raises(ConfigError, match=r"orders\.rows: 1 row\(s\) cannot be ordered"):
        choose_rows([source("a", [4])], None, seed=0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_even_shares(sizes: list[int], count: int) -> None:
    shares = even_shares(sizes, count)
    assert sum(shares) == min(count, sum(sizes))
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    unmet = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not unmet or max(shares) - min(unmet) <= 1, "who has more gives at most one more"


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from(["samples", "positions"]))
def test_every_row_comes_once_an_epoch(rows: int, batch: int, kind: Kind) -> None:
    batches = epoch_batches(kind, rows, batch, seed=1, run=2, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert sorted(positions(batches).tolist()) == [i / rows for i in range(rows)]
    assert len(batches) == -(-rows // batch)


def test_kinds_keep_what_they_promise() -> None:
    def composition(kind: Kind, run: int, epoch: int) -> list[tuple[int, ...]]:
        return [tuple(b.tolist()) for b in epoch_batches(kind, 40, 4, 7, run, epoch)]

    first = composition("positions", 0, 0)
    for run, epoch in [(0, 1), (1, 0), (1, 1)]:
        other = composition("positions", run, epoch)
        assert set(other) == set(first), "the batches stay"
        assert other != first, "their order changes"
        shuffled = composition("samples", run, epoch)
        assert {frozenset(b) for b in shuffled} != {frozenset(b) for b in first}
    assert composition("samples", 3, 1) == composition("samples", 3, 1)
    assert composition("samples", 3, 1) != composition("samples", 3, 0)


def test_positions_by_hand() -> None:
    batches = [np.array([2, 0]), np.array([3, 1])]
    assert positions(batches).tolist() == [0.25, 0.75, 0.0, 0.5]


# --- the plane ------------------------------------------------------------------------------------


@pytest.fixture
def plane() -> OrderedPlane:
    rows = choose_rows(SOURCES, None, seed=0)
    batches = [np.array([0, 5]), np.array([7, 2, 1]), np.array([3, 4]), np.array([6])]
    return OrderedPlane(rows, batches, (2, 2), capacity=9)


def drawn(plan: Any) -> list[list[tuple[int, int]]]:
    """Per step, (source, row) of its documents."""
    return [
        sorted((int(k), int(row)) for pack in step for k, _, row in pack.rows)
        for step in plan.steps
    ]


def test_a_plane_emits_the_batches_in_order(plane: OrderedPlane) -> None:
    first = plane.plan(MIXTURE, Budget(3))
    assert drawn(first) == [[(0, 0), (1, 2)], [(0, 1), (0, 2), (1, 4)], [(1, 0), (1, 1)]]
    assert not first.exhausted
    assert all(pack.tokens <= 9 for step in first.steps for pack in step)
    assert first.rows.tolist() == [[2, 1], [3, 1]]
    assert first.tokens.tolist() == [[6, 6], [12, 5]]
    assert first.supervised.tolist() == [[3, 3], [7, 3]]
    assert plane.available().tolist() == [[False, False], [False, True]]
    assert plane.epochs().tolist() == [[1, 1], [1, 0.5]]
    last = plane.plan(MIXTURE, Budget(3))
    assert drawn(last) == [[(1, 3)]]
    assert last.exhausted
    assert plane.plan(MIXTURE, Budget(1)).steps == ()


def test_a_plane_continues_from_a_snapshot(plane: OrderedPlane) -> None:
    plane.plan(MIXTURE, Budget(2))
    state = plane.snapshot()
    expected = drawn(plane.plan(MIXTURE, Budget(5)))
    plane.restore(state)
    assert drawn(plane.plan(MIXTURE, Budget(5))) == expected


def test_a_plane_stays_within_a_budget_of_tokens(plane: OrderedPlane) -> None:
    plan = plane.plan(MIXTURE, Budget(4, supervised=12))  # batches cost 6, 5, 5, 5
    assert len(plan.steps) == 2
    assert plan.supervised.sum() == 11


def test_a_plane_stays_within_a_budget_of_tokens_read(plane: OrderedPlane) -> None:
    cost = np.cumsum([plane.rows.lengths[batch].sum() for batch in plane._batches[:4]])
    plan = plane.plan(MIXTURE, Budget(4, tokens=int(cost[2]) - 1))
    assert len(plan.steps) == 2
    assert plan.tokens.sum() == cost[1]


def test_marks_are_evenly_apart() -> None:
    assert marks(100, 4) == [20, 40, 60, 80, 100]
    assert marks(16, 2) == [5, 11, 16]
    assert marks(3, 9) == [1, 2, 3], "fewer steps than checkpoints"
    assert marks(5, 0) == [5]


# --- the analysis ---------------------------------------------------------------------------------


def test_losses_beside_other_runs_by_hand() -> None:
    losses = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 2.0]])
    beside = np.array([[1 - 4, 5 - 3.5], [2 - 3.5, 5 - 3.5], [6 - 1.5, 2 - 5]])
    levels = np.array([[-0.75], [0.0], [0.75]])
    np.testing.assert_allclose(beside_other_runs(losses), beside - levels)
    with pytest.raises(ValueError, match="1 run"):
        beside_other_runs(losses[:1])


def test_statistics_by_hand() -> None:
    x, y = np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])
    assert slope(x, y) == pytest.approx(2)
    assert correlation(x, -y) == pytest.approx(-1)
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    assert gap(np.array([0.9, 0.0, 0.5]), np.array([4.0, 7.0, 1.0])) == 3, "a tenth is one"
    assert slope(np.ones(3), y) == correlation(np.ones(3), y) == 0
    binned = binned_loss(np.array([1.0, 3.0, 10.0]), np.array([0.1, 0.2, 0.9]), 3)
    np.testing.assert_array_equal(binned, [2.0, np.nan, 10.0])


def synthetic(effect: float, runs: int, seed: int) -> tuple[Any, Any, float]:
    """L = a_i + c_r + b (1 - pos) + noise, where samples and runs differ by far more than b.

    Returns:
        Losses, places, and the standard error of the slope, sd / sqrt(n R var(pos) (1 - 1/R)).
    """
    rng = np.random.default_rng(seed)
    samples, noise = 1000, 0.2
    places = np.stack([rng.permutation(samples) / samples for _ in range(runs)])
    hard, level = rng.normal(3, 4, samples), rng.normal(0, 1, (runs, 1))
    losses = hard + level + effect * (1 - places) + rng.normal(0, noise, places.shape)
    return losses, places, noise / float(np.sqrt(samples * runs / 12 * (1 - 1 / runs)))


@pytest.mark.parametrize("effect", [0.3, 0.0, -0.2])
@pytest.mark.parametrize("runs", [2, 5])
def test_a_synthetic_effect_is_recovered(effect: float, runs: int) -> None:
    losses, places, error = synthetic(effect, runs, seed=3)
    found = position_effect(losses, places)
    assert abs(found.slope.value + effect) < 4 * error
    assert abs(found.gap.value - 0.9 * effect) < 0.08
    middle = [e.value for e in found.effect]
    np.testing.assert_allclose(middle, effect * (0.5 - np.array(found.places)), atol=0.1)
    assert np.sign(round(found.pearson, 1)) == np.sign(round(found.spearman, 1)) == -np.sign(effect)


@pytest.mark.parametrize("effect", [0.3, 0.0])
def test_intervals_of_five_runs_cover_mostly(effect: float) -> None:
    """A percentile bootstrap of five covers about five times in six, not 19 times in 20."""
    covered = 0
    for seed in range(30):
        losses, places, error = synthetic(effect, 5, seed)
        slope = position_effect(losses, places, seed=seed).slope
        covered += slope.low <= -effect <= slope.high
        assert slope.high - slope.low < 12 * error
    assert 21 <= covered <= 29


def test_the_slope_is_that_of_a_regression_with_fixed_effects() -> None:
    """On average over orders; least squares with a constant for every sample is the reference."""
    rng = np.random.default_rng(0)
    runs, samples = 3, 60
    ours, reference = [], []
    for _ in range(40):
        places = np.stack([rng.permutation(samples) / samples for _ in range(runs)])
        losses = rng.normal(0, 3, samples) - 0.7 * places + rng.normal(0, 0.01, places.shape)
        ours.append(position_effect(losses, places).slope.value)
        design = np.concatenate([places.reshape(-1, 1), np.tile(np.eye(samples), (runs, 1))], 1)
        reference.append(np.linalg.lstsq(design, losses.ravel(), rcond=None)[0][0])
    assert np.mean(ours) == pytest.approx(np.mean(reference), abs=0.02)
    assert np.mean(reference) == pytest.approx(-0.7, abs=0.01)


def test_more_bins_than_samples() -> None:
    found = position_effect(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[0.0, 0.5], [0.5, 0.0]]))
    assert [e.value for e in found.effect] == [-1, 1]
    assert found.slope.value == 4
