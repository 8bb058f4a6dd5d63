import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.spaces.observations import (
    BOUND,
    PROGRESS,
    SOURCES,
    STRATA,
    dict_observation,
    dict_space,
    flat_observation,
    flat_space,
    layout,
    parts_of,
)
from mixgym.envs.spaces.signals import CELL_SIGNALS, SIGNALS, ZERO
from mixgym.envs.spaces.view import View

SEEDS = st.integers(0, 2**31)
NLLS = ("nll", "nll_before", "nll_start", "nll_train")
CELL_NLLS = ("cell_nll", "cell_nll_before", "cell_nll_start")
BY_SOURCE = ("targets", "prior", "weight", "share", *NLLS, "cost", "error")
CELLS = ("cell_size", "cell_prior", "cell_weight", "cell_epochs", "cell_cost", "cell_error")
BY_CELL = (*CELLS, *CELL_NLLS, "available")


def random_view(rng: np.random.Generator, sources: int, strata: int) -> View:
    cells = (sources, strata)
    size = rng.uniform(10, 1000, cells) * (rng.random(cells) < 0.9)
    return View(
        remaining=rng.random(),
        reward=rng.normal() * 0.1,
        targets=rng.integers(1, 3, sources).astype(float),
        prior=rng.dirichlet(np.ones(sources)),
        weight=rng.dirichlet(np.ones(sources)),
        share=rng.dirichlet(np.ones(sources)),
        **{name: rng.uniform(0.5, 3.0, sources) for name in NLLS},  # type: ignore[arg-type]
        mean_nll=rng.uniform(0.5, 3.0),
        mean_nll_start=rng.uniform(0.5, 3.0),
        cell_size=size,
        cell_prior=rng.dirichlet(np.ones(strata), sources),
        cell_weight=rng.dirichlet(np.ones(strata), sources),
        cell_epochs=rng.uniform(0, 3, cells),
        **{name: rng.uniform(0.5, 3.0, cells) for name in CELL_NLLS},  # type: ignore[arg-type]
        cost=rng.uniform(1.0, 50.0, sources),
        cell_cost=np.where(size > 0, rng.uniform(1.0, 50.0, cells), np.nan),
        error=rng.uniform(0.01, 0.5, sources),
        cell_error=rng.uniform(0.01, 0.5, cells),
        available=(size > 0) & (rng.random(cells) < 0.8),
    )


def parts(view: View, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    flat, _ = flat_observation(view, shape)
    return {name: flat[where].reshape(size) for name, (where, size) in layout(shape).items()}


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 4), (22, 8)])
def test_the_slices_of_the_layout_cover_the_vector_once(shape: tuple[int, int]) -> None:
    size = flat_space(shape).shape[0]
    covered = np.zeros(size, int)
    for where, part in layout(shape).values():
        covered[where] += 1
        assert where.stop - where.start == math.prod(part)
    assert (covered == 1).all()
    count, strata = shape
    assert size == len(PROGRESS) + count * (len(SOURCES) + strata * len(STRATA) + 1 + strata)


def test_every_name_of_the_layout_is_used_once() -> None:
    for names in (PROGRESS, SOURCES, STRATA, SIGNALS, CELL_SIGNALS):
        assert len(set(names)) == len(names)


def hand_view(**changes: Any) -> View:
    view = View(
        remaining=0.75,
        reward=0.1,
        targets=np.array([1.0, 2.0]),
        prior=np.array([0.5, 0.5]),
        weight=np.array([0.25, 0.75]),
        share=np.array([0.4, 0.6]),
        nll=np.array([1.0, 2.0]),
        nll_before=np.array([1.2, 2.0]),
        nll_start=np.array([2.0, 2.0]),
        nll_train=np.array([4.0, np.nan]),
        mean_nll=1.0,
        mean_nll_start=2.0,
        cell_size=np.array([[30.0, 10.0], [0.0, 120.0]]),
        cell_prior=np.array([[0.75, 0.25], [0.0, 1.0]]),
        cell_weight=np.array([[0.5, 0.5], [0.0, 1.0]]),
        cell_epochs=np.array([[1.0, 3.0], [0.0, 0.5]]),
        cell_nll=np.array([[1.0, 2.0], [np.nan, 2.0]]),
        cell_nll_before=np.array([[1.5, 2.0], [np.nan, 2.0]]),
        cell_nll_start=np.array([[2.0, 2.0], [np.nan, 2.0]]),
        cost=np.array([2.0, 6.0]),
        cell_cost=np.array([[1.0, 5.0], [np.nan, 6.0]]),
        error=np.array([0.1, np.nan]),
        cell_error=np.array([[0.0, 4.0], [np.nan, 0.02]]),
        available=np.array([[True, False], [False, True]]),
    )
    return dataclasses.replace(view, **changes)


def test_features_by_hand() -> None:
    seen = parts(hand_view(), (2, 2))
    assert seen["progress"] == pytest.approx([0.75, math.log(0.5), 10 * 0.1 / 2])
    first = dict(zip(SOURCES, seen["sources"][0].tolist(), strict=True))
    assert first == pytest.approx(
        {
            "target": 0.5,
            "size": math.log(40 / 80) / 3,
            "prior": 0.0,
            "weight": math.log(0.5) / 3,
            "share": 0.4,
            "epochs": math.log(1 + (30 * 1 + 10 * 3) / 40),
            "loss": math.log(0.5),
            "change": 10 * 0.2 / 2,
            "train_loss": math.log(2),
            "cost": math.log(2 / 4),
            "error": -1.0,
        },
        abs=1e-6,
    )
    second = dict(zip(SOURCES, seen["sources"][1].tolist(), strict=True))
    assert second["train_loss"] == 0.0, "unmeasured"
    assert second["cost"] == pytest.approx(math.log(6 / 4))
    assert second["error"] == 0.0, "unknown looks like an error of the loss's own size"
    cell = dict(zip(STRATA, seen["strata"][0, 0].tolist(), strict=True))
    assert cell == pytest.approx(
        {
            "difficulty": 0.0,
            "size": 0.75,
            "weight": 0.5,
            "epochs": math.log(2),
            "loss": math.log(0.5),
            "change": 10 * 0.5 / 2,
            "cost": math.log(1 / 4),
            "error": -4.0,
        },
        abs=1e-6,
    )
    columns = [STRATA.index(name) for name in ("cost", "error")]
    other = seen["strata"][..., columns].reshape(4, 2)[[1, 3]]
    assert other == pytest.approx(np.array([[math.log(5 / 4), 0.0], [math.log(6 / 4), -2.0]]))
    assert (seen["strata"][1, 0] == 0).all(), "an empty cell"
    assert seen["masks"].tolist() == [1, 1, 1, 0, 0, 1]


def test_difficulty_is_the_rank_from_easiest_to_hardest() -> None:
    rng = np.random.default_rng(0)
    view = dataclasses.replace(random_view(rng, 2, 5), cell_size=np.ones((2, 5)))
    ranks = parts(view, (3, 6))["strata"][..., STRATA.index("difficulty")]
    assert ranks[:2, :5].tolist() == [[0, 0.25, 0.5, 0.75, 1]] * 2
    assert (ranks[2] == 0).all()
    alone = dataclasses.replace(random_view(rng, 2, 1), cell_size=np.ones((2, 1)))
    assert (parts(alone, (2, 1))["strata"][..., 0] == 0).all()


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_padding_is_zero_and_changes_nothing_else(
    seed: int, sources: int, strata: int, more_sources: int, more_strata: int
) -> None:
    view = random_view(np.random.default_rng(seed), sources, strata)
    small, shape = parts(view, (sources, strata)), (sources + more_sources, strata + more_strata)
    large = parts(view, shape)
    assert large["progress"].tolist() == small["progress"].tolist()
    assert np.array_equal(large["sources"][:sources], small["sources"])
    assert (large["sources"][sources:] == 0).all()
    assert np.array_equal(large["strata"][:sources, :strata], small["strata"])
    assert (large["strata"][sources:] == 0).all()
    assert (large["strata"][:, strata:] == 0).all()
    masks = large["masks"][shape[0] :].reshape(shape)
    assert np.array_equal(masks[:sources, :strata], view.available)
    assert masks.sum() == view.available.sum()
    assert large["masks"][: shape[0]].sum() == view.available.any(-1).sum()


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.01, 0.5, 7.0, 300.0]))
def test_features_do_not_depend_on_the_scale_of_losses_or_sizes(
    seed: int, sources: int, strata: int, factor: float
) -> None:
    view = random_view(np.random.default_rng(seed), sources, strata)
    scaled = {
        name: getattr(view, name) * factor
        for name in (*NLLS, *CELL_NLLS, "mean_nll", "mean_nll_start", "reward")
    }
    scaled |= {name: getattr(view, name) * factor for name in ("error", "cell_error")}
    sized = {"cell_size": view.cell_size * factor, "targets": view.targets * factor}
    other = dataclasses.replace(view, **scaled, **sized)
    shape = (sources, strata)
    assert flat_observation(other, shape)[0] == pytest.approx(
        flat_observation(view, shape)[0], rel=1e-5, abs=1e-6
    )


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_sources_in_another_order_are_rows_in_that_order(
    seed: int, sources: int, strata: int
) -> None:
    rng = np.random.default_rng(seed)
    view, order = random_view(rng, sources, strata), rng.permutation(sources)
    turned = dataclasses.replace(
        view, **{name: getattr(view, name)[order] for name in (*BY_SOURCE, *BY_CELL)}
    )
    shape = (sources, strata)
    straight, permuted = parts(view, shape), parts(turned, shape)
    assert permuted["progress"] == pytest.approx(straight["progress"])
    assert permuted["sources"] == pytest.approx(straight["sources"][order], abs=1e-6)
    assert permuted["strata"] == pytest.approx(straight["strata"][order], abs=1e-6)
    assert permuted["masks"][:sources].tolist() == straight["masks"][:sources][order].tolist()


def test_the_clipped_share_is_counted() -> None:
    view = hand_view(reward=1e6, nll_before=np.array([1.0 + 1e3, -1e3]))
    flat, clipped = flat_observation(view, (2, 2))
    assert clipped == pytest.approx(3 / len(flat))
    assert flat.max() == BOUND
    assert flat.min() == -BOUND
    assert flat_observation(hand_view(), (2, 2))[1] == 0.0


def test_a_weight_of_zero_does_not_look_like_the_uniform_weight() -> None:
    seen = parts(hand_view(weight=np.array([0.0, 1.0])), (2, 2))["sources"]
    column = SOURCES.index("weight")
    assert seen[:, column] == pytest.approx([-BOUND / 3, math.log(2) / 3])
    tiny = parts(hand_view(weight=np.array([1e-9, 1.0])), (2, 2))["sources"]
    assert tiny[:, column] == pytest.approx(seen[:, column])


@pytest.mark.parametrize("shape", [(2, 2), (4, 3)])
def test_observations_belong_to_their_spaces(shape: tuple[int, int]) -> None:
    view = hand_view()
    flat, _ = flat_observation(view, shape)
    assert flat.dtype == np.float32
    assert flat_space(shape).contains(flat)
    whole, clipped = dict_observation(view, shape)
    assert all(values.dtype == np.float32 for values in whole.values())
    assert dict_space(shape).contains(whole)
    assert clipped == 0.0
    assert np.array_equal(
        np.concatenate([whole[name] for name in ("progress", "sources", "strata", "masks")]), flat
    )


def test_signals_are_the_raw_numbers() -> None:
    whole = parts_of(dict_observation(hand_view(), (3, 2))[0])
    table = {name: whole["signals"][:, i].tolist() for i, name in enumerate(SIGNALS)}
    assert table["present"] == [1, 1, 0]
    assert table["target"] == [1, 2, 0]
    assert table["size"] == [40, 120, 0]
    assert table["weight"] == [0.25, 0.75, 0]
    assert table["epochs"] == [1.5, 0.5, 0]
    assert table["nll_train"] == [4, 0, 0]
    assert table["cost"] == [2, 6, 0]
    assert table["error"] == pytest.approx([0.1, 0, 0])
    cells = {name: whole["cell_signals"][..., i].tolist() for i, name in enumerate(CELL_SIGNALS)}
    assert cells["available"] == [[1, 0], [0, 1], [0, 0]]
    assert cells["size"] == [[30, 10], [0, 120], [0, 0]]
    assert cells["nll"] == [[1, 2], [0, 2], [0, 0]]
    assert cells["cost"] == [[1, 5], [0, 6], [0, 0]]
    assert np.ravel(cells["error"]) == pytest.approx([ZERO, 4, 0, 0.02, 0, 0]), "a known 0 is not 0"


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_parts_keep_leading_axes_and_join_to_what_they_were(leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    space = dict_space((3, 2))
    whole = {
        name: rng.random((*leading, *box.shape)).astype(np.float32)
        for name, box in space.spaces.items()
    }
    found = parts_of(whole)
    assert found["strata"].shape == (*leading, 3, 2, len(STRATA))
    assert found["signals"].shape == (*leading, 3, len(SIGNALS))
    for name, values in found.items():
        assert np.array_equal(values.reshape(whole[name].shape), whole[name])
