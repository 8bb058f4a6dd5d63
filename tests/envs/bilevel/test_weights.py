from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.bilevel.weights import (
    Logits,
    check_gradient,
    effective_sources,
    softmax_around,
    weight_gradient,
)
from mixgym.envs.errors import MixgymError

Update = Literal["adam", "mirror", "gradient"]
seeds = st.integers(0, 2**31)


def drawn(seed: int, count: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    base = random.dirichlet(np.ones(count))
    return base, random.normal(size=count), random.normal(size=count) * 10 ** random.uniform(-3, 3)


@given(seeds, st.integers(2, 9))
def test_the_gradient_is_autograds(seed: int, count: int) -> None:
    base, logits, gap = drawn(seed, count)
    lam = torch.from_numpy(logits).requires_grad_()
    p = torch.softmax(torch.from_numpy(np.log(base)) + lam, 0)
    (p @ torch.from_numpy(gap)).backward()
    assert lam.grad is not None
    present = np.ones(count, np.bool_)
    found = weight_gradient(softmax_around(base, logits), gap, present)
    np.testing.assert_allclose(found, lam.grad.numpy(), atol=1e-12 * np.abs(gap).max())
    check_gradient(logits, base, gap, present, found)


@given(seeds, st.integers(2, 9))
def test_entries_sum_to_nothing_and_follow_a_permutation(seed: int, count: int) -> None:
    base, logits, gap = drawn(seed, count)
    present = np.random.default_rng(seed).random(count) < 0.7
    found = weight_gradient(softmax_around(base, logits), gap, present)
    assert abs(found.sum()) <= 1e-12 * np.abs(gap).max()
    assert not found[~present].any()
    order = np.random.default_rng(seed + 1).permutation(count)
    again = weight_gradient(softmax_around(base[order], logits[order]), gap[order], present[order])
    np.testing.assert_allclose(again, found[order], atol=1e-12 * np.abs(gap).max())


@given(seeds)
def test_a_difference_of_the_weighted_gap(seed: int) -> None:
    base, logits, gap = drawn(seed, 4)
    gap = gap / np.abs(gap).max()
    found = weight_gradient(softmax_around(base, logits), gap, np.ones(4, np.bool_))
    step = 1e-5
    wanted = [
        (softmax_around(base, logits + step * e) - softmax_around(base, logits - step * e)) @ gap
        for e in np.eye(4)
    ]
    np.testing.assert_allclose(found, np.array(wanted) / (2 * step), atol=1e-7)


def test_no_gap_no_gradient() -> None:
    p = np.array([0.2, 0.3, 0.5])
    assert not weight_gradient(p, np.zeros(3), np.ones(3, np.bool_)).any()
    assert not weight_gradient(p, np.full(3, np.nan), np.zeros(3, np.bool_)).any()
    np.testing.assert_array_equal(
        weight_gradient(p, np.array([1.0, np.nan, 2.0]), np.array([True, False, True]))[1], 0.0
    )


def test_the_check_finds_a_wrong_gradient() -> None:
    base, logits, gap = np.full(2, 0.5), np.zeros(2), np.array([1.0, -1.0])
    with pytest.raises(MixgymError, match=r"bilevel\.check: .*differs from autograd's"):
        check_gradient(logits, base, gap, np.ones(2, np.bool_), np.array([0.5, -0.4]))


def test_extreme_logits_stay_finite() -> None:
    p = softmax_around(np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.0, 800.0, -800.0, 900.0]))
    np.testing.assert_allclose(p, [0.0, 1.0, 0.0, 0.0], atol=1e-300)
    assert effective_sources(p) == pytest.approx(1.0)


@pytest.mark.parametrize("update", ["adam", "mirror"])
@given(seed=seeds)
def test_travel_is_never_more_than_what_is_handed_out(update: Update, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = Logits(np.zeros(3), update)
    for _ in range(30):
        p = logits.weights(np.full(3, 1 / 3))
        gap = random.standard_cauchy(3)
        logits.move(logits.gradient(p, gap, np.ones(3, np.bool_)), p, 0.1)
    assert logits.travelled <= 3.0 + 1e-9
    assert np.abs(logits.value).max() <= logits.travelled + 1e-9


@pytest.mark.parametrize(
    ("steps", "count", "low", "high"),
    [(156, 2, 0.172, 0.828), (234, 10, 0.0106, 0.536), (702, 10, 0.000099, 0.992)],
)
def test_the_reach_of_a_travel_budget(steps: int, count: int, low: float, high: float) -> None:
    """Shipped settings: 0.01 logits a step under a half cosine, that is 0.005 on average.

    However steady the gradient, no weight leaves these bounds.
    """
    base, reached = np.full(count, 1.0 / count), []
    for sign in (1.0, -1.0):
        logits, gradient = Logits(np.zeros(count)), np.full(count, sign)
        gradient[0] = -sign
        for step in range(steps):
            size = 0.01 * 0.5 * (1 + np.cos(np.pi * step / steps))
            logits.move(gradient, logits.weights(base), size)
        assert logits.travelled == pytest.approx(0.005 * (steps + 1))
        reached.append(logits.weights(base)[0])
    assert reached == pytest.approx([high, low], rel=0.03)


def test_identical_sources_keep_identical_weights() -> None:
    for update in ("adam", "mirror", "gradient"):
        logits = Logits(np.zeros(3), update)
        for step in range(20):
            p = logits.weights(np.full(3, 1 / 3))
            gap = np.array([np.sin(step), 1.0, 1.0])
            logits.move(logits.gradient(p, gap, np.ones(3, np.bool_)), p, 0.2)
        assert logits.value[1] == logits.value[2] != logits.value[0]


def test_decay_goes_back_to_the_prior_and_clipping_bounds() -> None:
    logits = Logits(np.array([2.0, -1.0]), "gradient", decay=0.1)
    logits.move(np.zeros(2), np.full(2, 0.5), 1.0)
    np.testing.assert_allclose(logits.value, [1.8, -0.9])
    clipped = Logits(np.zeros(2), "gradient", clip=0.5)
    clipped.move(np.array([100.0, -0.1]), np.full(2, 0.5), 1.0)
    np.testing.assert_allclose(clipped.value, [-0.5, 0.1])
    assert clipped.travelled == 0.5


@pytest.mark.parametrize("update", ["adam", "mirror", "gradient"])
def test_logits_resume(update: Update) -> None:
    random = np.random.default_rng(0)
    gaps = random.normal(size=(10, 3))

    def go(logits: Logits, gaps: np.ndarray) -> Logits:
        for gap in gaps:
            p = logits.weights(np.full(3, 1 / 3))
            logits.move(logits.gradient(p, gap, np.ones(3, np.bool_)), p, 0.1)
        return logits

    whole = go(Logits(np.zeros(3), update), gaps)
    again = Logits(np.zeros(3), update)
    again.restore(go(Logits(np.zeros(3), update), gaps[:4]).snapshot())
    assert go(again, gaps[4:]).snapshot() == whole.snapshot()
