"""The closed-form learner's mathematics, against numbers worked by hand."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.curves.dynamics import (
    GATE_LEAK,
    CurveState,
    advance,
    effective_tokens,
    gradient_norm,
    mastery,
    nll,
    passes,
)
from mixgym.envs.curves.task import (
    MAX_SOURCES,
    MAX_STRATA,
    CurveTask,
    pad_task,
    stack_tasks,
)
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.tasks.sets import TASK_SETS
from mixgym.envs.errors import ConfigError

from ..synthetic import hand_task

SEEDS = st.integers(0, 2**31)


def after(task: CurveTask, *tokens: Any) -> CurveState:
    """The state after intervals of so many tokens per cell."""
    state = CurveState.start(task)
    for amount in tokens:
        state = advance(task, state, np.broadcast_to(np.array(amount, float), task.size.shape))
    return state


def test_the_curve_by_hand() -> None:
    task = hand_task()
    assert nll(task, CurveState.start(task)).ravel().tolist() == [2.5, 2.5]
    # 30 effective tokens: .5 + 2 / sqrt(1 + 3); the other gets half of them: .5 + 2 / sqrt(2.5)
    state = after(task, [[30], [0]])
    assert effective_tokens(task, state).ravel().tolist() == [30, 15]
    assert nll(task, state).ravel() == pytest.approx([1.5, 0.5 + 2 / 2.5**0.5])
    assert mastery(task, state)[0, 0] == pytest.approx(0.5)
    assert passes(task, state).ravel().tolist() == [0.3, 0]
    # -d/dn of 2 (1 + n / 10) ** -.5 at 30: 2 * .5 / 10 * 4 ** -1.5
    assert gradient_norm(task, state)[0, 0] == pytest.approx(0.1 / 8)
    # transfer has a direction: what the second source is given helps the first one nothing
    assert nll(task, after(task, [[0], [30]])).ravel() == pytest.approx([2.5, 1.5])


def test_repeated_rows_are_worth_less_and_less() -> None:
    task = hand_task()
    worth = [after(task, [[100 * n], [0]]).learnt[0, 0] for n in (0.5, 1, 2, 5, 1000)]
    assert worth[:2] == pytest.approx([50, 100])
    assert worth[2:4] == pytest.approx([100 + 1000 * (1 - np.exp(-n / 10)) for n in (1, 4)])
    assert worth[4] == pytest.approx(1100), "one pass, and as much again as the patience"


@settings(max_examples=40)
@given(SEEDS)
def test_passes_in_one_interval_are_worth_what_they_are_in_several(seed: int) -> None:
    task = sample_task(seed, strata=1)
    task = replace(task, threshold=0 * task.threshold)
    amount = np.random.default_rng(seed).uniform(0, 6, task.size.shape) * task.size
    at_once, in_parts = after(task, amount), after(task, *[amount / 7] * 7)
    assert at_once.learnt == pytest.approx(in_parts.learnt)
    assert nll(task, at_once) == pytest.approx(nll(task, in_parts))


def test_repetition_over_fits_small_sources() -> None:
    task = hand_task(overfit=[[0.3], [0.3]], transfer=np.eye(2), size=[[100.0], [1e6]])
    few, many = after(task, [[400], [400]]), after(task, [[40_000], [40_000]])
    assert nll(task, many)[0] > nll(task, few)[0], "400 passes"
    assert nll(task, many)[1] < nll(task, few)[1], "a twenty-fifth of one pass"
    free = replace(task, overfit=np.zeros((2, 1)))
    assert nll(task, few)[0] == nll(free, few)[0], "four passes cost nothing"
    # 100 times the free passes: 0.3 ln(100)
    assert nll(task, many)[0] - nll(free, many)[0] == pytest.approx(0.3 * np.log(100))


def gated() -> CurveTask:
    one = np.ones((1, 3))
    return hand_task(
        targets=[1.0], size=1e9 * one, floor=one, amplitude=one, scale=100 * one, exponent=one,
        transfer=[[1.0]], spread=np.eye(3), threshold=[[0.5]], patience=[[10.0]], overfit=[[0.0]],
    )  # fmt: skip


def test_strata_open_only_after_easier_ones() -> None:
    task = gated()
    closed = after(task, [[0, 0, 1000]]).learnt[0]
    assert closed[2] == pytest.approx(1000 * GATE_LEAK, rel=1e-3)
    assert after(task, [[1000, 0, 0]]).learnt[0, 0] == pytest.approx(1000), (
        "the easiest is always open"
    )
    # mastery of the easiest: 1 - 1 / (1 + 1000 / 100) = 0.91, far above the threshold
    opened = after(task, [[1000, 0, 0]], [[0, 1000, 1000]]).learnt[0]
    assert opened[1] == pytest.approx(1000, rel=1e-3)
    assert opened[2] == pytest.approx(1000 * GATE_LEAK, rel=1e-3), "the second was still unlearnt"
    # at the threshold itself, mastery one half, the gate is half open
    half = after(task, [[100, 0, 0]], [[0, 1000, 0]]).learnt[0, 1]
    assert half == pytest.approx(1000 * (GATE_LEAK + (1 - GATE_LEAK) / 2))
    curriculum = nll(task, after(task, [[3000, 0, 0]], [[0, 3000, 0]], [[0, 0, 3000]]))
    reverse = nll(task, after(task, [[0, 0, 3000]], [[0, 3000, 0]], [[3000, 0, 0]]))
    assert curriculum[0, 2] < reverse[0, 2] - 0.1


@settings(max_examples=60)
@given(SEEDS)
def test_losses_stay_between_start_and_floor_and_tokens_never_hurt(seed: int) -> None:
    task = sample_task(seed)
    task = replace(task, overfit=0 * task.overfit)
    rng = np.random.default_rng(seed)
    start, state = nll(task, CurveState.start(task)), CurveState.start(task)
    assert start == pytest.approx(task.floor + task.amplitude)
    for _ in range(4):
        before = nll(task, state)
        share = rng.dirichlet(np.full(task.size.size, 0.3)).reshape(task.size.shape)
        state = advance(task, state, float(task.budget) / 4 * share)
        assert (nll(task, state) <= before + 1e-12).all()
        assert (nll(task, state) >= task.floor).all()
        assert (state.learnt <= state.given + 1e-6).all(), "no token is worth more than itself"


@settings(max_examples=40)
@given(SEEDS)
def test_the_gradient_norm_is_the_slope_in_effective_tokens(seed: int) -> None:
    task = sample_task(seed)
    task = replace(task, transfer=np.eye(len(task.targets)), spread=np.eye(task.size.shape[1]))
    rng = np.random.default_rng(seed)
    learnt = task.scale * 10.0 ** rng.uniform(-1, 2, task.size.shape)
    step = 1e-5 * (task.scale + learnt)
    begun = CurveState.start(task)
    up, down = (replace(begun, learnt=learnt + s * step) for s in (0.5, -0.5))
    slope = (nll(task, down) - nll(task, up)) / step
    norm = gradient_norm(task, replace(begun, learnt=learnt))
    large = task.amplitude > 0.1  # noise sources hardly fall: differences lose digits
    np.testing.assert_allclose(slope[large], norm[large], rtol=1e-6)
    np.testing.assert_allclose(slope, norm, rtol=1e-3)


def test_noise_sources_do_not_fall_and_teach_nothing() -> None:
    seen = 0
    for seed in TASK_SETS["validation"]:
        task = sample_task(seed, noise_sources=1)
        junk = np.flatnonzero(task.amplitude.max(-1) < 0.1)
        assert len(junk) == 1
        k = int(junk[0])
        assert task.targets[k] == 0
        tokens = np.zeros(task.size.shape)
        tokens[k] = float(task.budget)
        quiet = replace(task, overfit=0 * task.overfit)
        fall = nll(quiet, CurveState.start(task)) - nll(quiet, after(quiet, tokens))
        assert (fall[k] <= 0.02).all()
        assert (np.delete(fall, k, 0) == 0).all()
        seen += len(junk)
    assert seen == len(TASK_SETS["validation"])


def test_tasks_are_as_described() -> None:
    tasks = [sample_task(seed) for seed in range(300)]
    shapes = np.array([task.size.shape for task in tasks])
    assert set(shapes[:, 0].tolist()) == set(range(3, MAX_SOURCES + 1))
    assert set(shapes[:, 1].tolist()) == set(range(2, MAX_STRATA + 1))
    spans = [np.log10(t.size.sum(-1).max() / t.size.sum(-1).min()) for t in tasks]
    assert np.median(spans) > 2
    assert max(spans) > 2.8
    assert all(1e5 <= task.budget <= 1e6 for task in tasks)
    assert all(task.targets.max() > 0 for task in tasks)
    assert {0.0, 0.5, 1.0, 2.0} == {float(w) for task in tasks for w in task.targets}
    with_noise = [bool((task.amplitude < 0.1).any()) for task in tasks]
    assert 0.4 < np.mean(with_noise) < 0.6
    assert all((np.diag(task.transfer) == 1).all() for task in tasks)
    assert all((task.transfer >= 0).all() and (task.transfer <= 1).all() for task in tasks)
    assert all(task.present.all() and len(task.names) == len(task.targets) for task in tasks)


def test_the_sets_of_tasks_are_frozen_and_disjoint() -> None:
    for kind in ("", "world-"):
        sets = {n: TASK_SETS[kind + n] for n in ("train", "validation", "test")}
        seeds = {name: getattr(tasks, "seeds", tasks) for name, tasks in sets.items()}
        every = [seed for tasks in seeds.values() for seed in tasks]
        assert len(set(every)) == len(every)
        assert {name: (tasks[0], len(tasks)) for name, tasks in seeds.items()} == {
            "train": (0, 4096),
            "validation": (1_000_000, 64),
            "test": (2_000_000, 64),
        }


def test_the_generator_of_tasks_has_not_changed() -> None:
    """If this fails on purpose, earlier results on the frozen sets cannot be compared any more."""
    digest = hashlib.sha256()
    for seed in (0, 4095, 1_000_000, 1_000_063, 2_000_000, 2_000_063):
        task = sample_task(seed)
        for name in (
            "targets", "size", "floor", "amplitude", "scale", "exponent", "transfer", "spread",
            "threshold", "patience", "overfit", "budget", "noise",
        ):  # fmt: skip
            values = np.asarray(getattr(task, name), np.float64)
            values = values[0, 0] if name == "noise" else values  # all its cells are alike
            digest.update(f"{name} {values.shape}".encode())
            digest.update(" ".join(f"{value:.9e}" for value in values.ravel()).encode())
    assert digest.hexdigest()[:16] == "79a57a01d350272d"


def test_asked_sizes_are_kept() -> None:
    task = sample_task(3, sources=5, strata=2, noise_sources=2)
    assert task.size.shape == (5, 2)
    assert (task.amplitude.max(-1) < 0.1).sum() == 2


@settings(max_examples=30)
@given(SEEDS)
def test_padding_changes_nothing(seed: int) -> None:
    task = sample_task(seed)
    count, groups = task.size.shape
    padded = stack_tasks([task, sample_task(seed + 1)], MAX_SOURCES + 1, MAX_STRATA + 2)
    rng = np.random.default_rng(seed)
    state, wide = CurveState.start(task), CurveState.start(padded)
    for _ in range(4):
        tokens = rng.uniform(0, 0.1, task.size.shape) * float(task.budget)
        more = np.zeros(padded.size.shape)
        more[0, :count, :groups] = tokens
        state, wide = advance(task, state, tokens), advance(padded, wide, more)
        for function in (nll, mastery, passes, effective_tokens):
            mine, theirs = function(task, state), function(padded, wide)[0]
            np.testing.assert_allclose(theirs[:count, :groups], mine, rtol=1e-12, atol=1e-12)
            assert np.isfinite(theirs).all()
        absent = nll(padded, wide)[0]
        absent[:count, :groups] = 0
        assert (absent == 0).all()


def test_a_task_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="a task has 5 sources and 3 strata"):
        pad_task(sample_task(0, sources=5, strata=3), 4, 3)
