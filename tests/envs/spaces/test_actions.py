"""Action kinds around the current mixture: delta and nudge, one at a time and as a batch."""

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.curves.core import CurvesCore
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.errors import MixgymError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.actions import ACTIONS, Delta, Frames, Logits, Nudge, make_action_kind
from mixgym.envs.spaces.mixture import (
    Mixture,
    MixtureFrame,
    action_size,
    floored,
    join_action,
    split_action,
    weights_moved,
)

SEEDS = st.integers(0, 2**31)
PAIRS = ("prior", "base", "current")


def random_frame(rng: np.random.Generator, sources: int, strata: int) -> MixtureFrame:
    """Some cells masked, padding, and a current mixture that logits can reach."""
    mask = rng.random((sources, strata)) < 0.7
    mask[rng.integers(sources), rng.integers(strata)] = True
    prior = Mixture.of(rng.dirichlet(np.ones(sources)), rng.dirichlet(np.ones(strata), sources))
    frame = MixtureFrame(
        prior, mask, (sources + int(rng.integers(3)), strata + int(rng.integers(3)))
    )
    action = rng.uniform(-1, 1, action_size(frame.shape))
    return replace(frame, current=Logits(floor=0.05).decode(action, frame))


def even_frame(sources: int, strata: int, shape: tuple[int, int] | None = None) -> MixtureFrame:
    prior = Mixture.of(np.ones(sources) / sources, np.ones((sources, strata)) / strata)
    return MixtureFrame(prior, np.ones((sources, strata), bool), shape or (sources, strata))


def current(frame: MixtureFrame) -> Mixture:
    assert frame.current is not None
    return frame.current


@settings(max_examples=80)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_zero_stays(seed: int, sources: int, strata: int) -> None:
    frame = random_frame(np.random.default_rng(seed), sources, strata)
    delta = Delta(floor=0.05).decode(np.zeros(action_size(frame.shape)), frame)
    nudge = Nudge(floor=0.05).decode(np.array(0), frame)
    for mixture in (delta, nudge):
        assert mixture.cells == pytest.approx(current(frame).cells, abs=1e-12)


@settings(max_examples=80)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.floats(0.0, 0.3))
def test_moved_mixtures_are_mixtures_above_the_floor_and_inside_the_mask(
    seed: int, sources: int, strata: int, floor: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    kind, nudge = Delta(floor=floor, step=2.0), Nudge(floor=floor, step=2.0)
    entries = action_size(frame.shape)
    for mixture in (
        kind.decode(rng.uniform(-3, 3, entries), frame),
        nudge.decode(np.array(rng.integers(1 + entries), float), frame),
    ):
        assert (mixture.cells[~frame.mask] == 0.0).all()
        assert math.fsum(mixture.cells.ravel()) == pytest.approx(1.0, abs=1e-9)
        open_ = np.asarray(frame.mask.any(-1))
        least = floor * floored(frame.prior.sources, open_, floor)
        assert (mixture.sources >= least - 1e-12).all()


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.floats(-0.4, 0.4))
def test_a_common_shift_of_a_level_does_nothing(
    seed: int, sources: int, strata: int, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    kind = Delta(floor=0.05)
    action = rng.uniform(-0.5, 0.5, action_size(frame.shape))
    top, inner = split_action(action, frame)
    moved = join_action(top + shift, inner + 2 * shift * 0.5, frame)
    cells = kind.decode(join_action(top, inner, frame), frame).cells
    assert kind.decode(moved, frame).cells == pytest.approx(cells, abs=1e-12)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 6), st.integers(1, 4))
def test_steps_never_leave_the_reach_of_logits(seed: int, sources: int, strata: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    kind = Delta(floor=0.05, reach=0.9, step=1.0)
    for _ in range(12):
        action = np.sign(rng.uniform(-1, 1, action_size(frame.shape)))
        frame = replace(frame, current=kind.decode(action, frame))
    again = Logits(floor=0.05, reach=0.9)
    reached = again.decode(again.encode(current(frame), frame), frame)
    assert reached.cells == pytest.approx(current(frame).cells, abs=1e-9)


def test_by_hand() -> None:
    frame = even_frame(3, 2, (4, 2))
    # no floor: weights in the ratio e^0.5 : 1 : 1
    kind = Delta(floor=0.0, step=0.5)
    action = np.zeros(12)
    action[0] = 1.0
    up = math.exp(0.5)
    expected = [up / (up + 2), 1 / (up + 2), 1 / (up + 2)]
    mixture = kind.decode(action, frame)
    assert mixture.sources.tolist() == pytest.approx(expected)
    assert mixture.strata.tolist() == [[0.5, 0.5]] * 3
    # the same as a nudge of source 0, and twice is twice
    nudge = Nudge(floor=0.0, step=0.5)
    once = nudge.decode(np.array(1), frame)
    assert once.sources.tolist() == pytest.approx(expected)
    twice = nudge.decode(np.array([1]), replace(frame, current=once))
    assert twice.sources[0] == pytest.approx(math.e / (math.e + 2))
    # 1 + K_max + k * G_max + g: stratum 1 of source 2
    inner = nudge.decode(np.array(1 + 4 + 2 * 2 + 1), frame)
    assert inner.strata[2].tolist() == pytest.approx([1 / (1 + up), up / (1 + up)])
    assert inner.sources.tolist() == pytest.approx([1 / 3] * 3)
    # source 3 is padding
    padding = nudge.decode(np.array(4), frame)
    assert padding.cells == pytest.approx(np.full((3, 2), 1 / 6))


def test_a_step_stops_where_logits_end() -> None:
    frame = even_frame(2, 1)
    kind = Delta(floor=0.0, reach=0.9, step=100.0)
    mixture = kind.decode(np.array([1.0, -1.0, 0.0, 0.0]), frame)
    assert mixture.sources.tolist() == pytest.approx([0.9, 0.1])


def test_moved_weights_work_over_leading_axes() -> None:
    rng = np.random.default_rng(0)
    shape = (5, 3, 4)
    mask = rng.random(shape) < 0.8
    base = floored(rng.dirichlet(np.ones(4), shape[:2]), mask, 0.1)
    now, shift = base * rng.uniform(0.5, 2.0, shape), rng.normal(size=shape)
    now = np.where(
        now.sum(-1, keepdims=True) > 0, now / np.maximum(now.sum(-1), 1e-9)[..., None], 0
    )
    scale = rng.uniform(0.5, 2.0, (5, 1, 1))
    whole = weights_moved(now, shift, base, scale, 0.1)
    for i, j in np.ndindex(5, 3):
        one = weights_moved(now[i, j], shift[i, j], base[i, j], float(scale[i, 0, 0]), 0.1)
        assert whole[i, j].tolist() == one.tolist()
    assert whole.sum(-1) == pytest.approx(mask.any(-1).astype(float))


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4))
def test_encoding_walks_to_the_mixture(seed: int, sources: int, strata: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    goal = Logits(floor=0.05).decode(rng.uniform(-1, 1, action_size(frame.shape)), frame)
    kind = Delta(floor=0.05, step=0.5)
    for _ in range(20):
        frame = replace(frame, current=kind.decode(kind.encode(goal, frame), frame))
    assert current(frame).cells == pytest.approx(goal.cells, abs=1e-6)


def test_a_nudge_goes_where_most_is_missing() -> None:
    frame = even_frame(3, 2)
    kind = Nudge(floor=0.0, step=0.5)
    inner = [[0.5, 0.5]] * 3
    assert int(kind.encode(Mixture.of([0.2, 0.2, 0.6], inner), frame)) == 3
    assert int(kind.encode(Mixture.of([1 / 3] * 3, [*inner[:2], [0.1, 0.9]]), frame)) == 1 + 3 + 5
    assert int(kind.encode(Mixture.of([0.3, 0.35, 0.35], inner), frame)) == 0, "near enough"


@pytest.mark.parametrize("bad", [-1, 10, 1.5, np.nan])
def test_a_nudge_out_of_range_says_what_there_is(bad: float) -> None:
    with pytest.raises(MixgymError, match="a nudge is one whole number from 0 to 9"):
        Nudge().decode(np.array(bad), even_frame(3, 2))


@pytest.mark.parametrize("action", ["logits", "delta", "nudge", "weights"])
def test_a_batch_does_what_single_environments_do(action: str) -> None:
    tasks = [sample_task(seed, sources=3, strata=2) for seed in (1, 2)]
    options = EnvironmentOptions(
        learner="curves", action=action, max_sources=4, max_strata=3, step=0.7
    )
    core = CurvesCore(2, tasks, options, decisions=5, in_order=True)
    core.reset()
    kind = make_action_kind(action, floor=options.floor, reach=options.reach, step=options.step)
    space = kind.space((4, 3))
    space.seed(3)
    frames = []
    for task in tasks:
        prior = Mixture.of(np.ones(3) / 3, task.size / task.size.sum(-1, keepdims=True))
        frames.append(MixtureFrame(prior, np.ones((3, 2), bool), (4, 3), prior))
    for _ in range(5):
        actions = np.stack([np.asarray(space.sample()) for _ in tasks])
        core.step(actions)
        for i, frame in enumerate(frames):
            mixture = kind.decode(actions[i].astype(np.float64), frame)
            frames[i] = replace(frame, current=mixture)
            assert core.last.weight[i, :3] == pytest.approx(mixture.sources, abs=1e-12)
            assert core.last.strata[i, :3, :2] == pytest.approx(mixture.strata, abs=1e-12)


@pytest.mark.parametrize("action", ["delta", "nudge"])
def test_environments_take_them(action: str) -> None:
    env = make_mixture_env(environment={"action": action}, training={"steps": 12, "interval": 3})
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    size = 1 if action == "nudge" else (env.action_space.shape or ())[0]
    stay: Any = np.array(0) if action == "nudge" else np.zeros(size, np.float32)
    before = env.mixture
    for _ in range(2):
        _, _, _, _, info = env.step(stay)
    record = info["decision"]
    assert [*record["mixture"].values()] == pytest.approx(before.sources.tolist(), abs=1e-9)
    up: Any = 1 if action == "nudge" else np.eye(1, size, dtype=np.float32)[0]
    weights = []
    for _ in range(2):
        *_, info = env.step(up)
        weights.append(next(iter(info["decision"]["mixture"].values())))
    assert before.sources[0] < weights[0] < weights[1]
    assert env.action_space.contains(env.encode(before))


def test_a_batch_of_nudges_is_checked() -> None:
    options = EnvironmentOptions(learner="curves", action="nudge", max_sources=3, max_strata=2)
    core = CurvesCore(1, [sample_task(0, sources=3, strata=2)], options)
    core.reset()
    assert isinstance(core.action_space, gym.spaces.Discrete)
    with pytest.raises(MixgymError, match="from 0 to 9"):
        core.step(np.array([10]))


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.sampled_from(ACTIONS))
def test_a_single_action_is_a_batch_of_one(
    seed: int, sources: int, strata: int, action: str
) -> None:
    """Bit for bit, with cells masked, padding, and mixtures of all sorts set before."""
    rng = np.random.default_rng(seed)
    kind = make_action_kind(action, floor=0.05, reach=0.9, step=0.7)
    frames = [random_frame(rng, sources, strata) for _ in range(3)]
    frames = [replace(frame, shape=(sources + 1, strata + 2)) for frame in frames]
    ones = [Frames.of_one(frame, 0.05, 0.9) for frame in frames]
    pairs = [list(zip(*(getattr(one, name) for one in ones), strict=True)) for name in PAIRS]
    prior, base, current = ((np.stack(top), np.stack(inner)) for top, inner in pairs)
    mask = np.stack([frame.mask for frame in frames])
    batch = Frames(prior, base, ones[0].scale, current, mask, frames[0].shape)
    space = kind.space(frames[0].shape)
    space.seed(seed)
    drawn = np.stack([np.asarray(space.sample()) for _ in frames])
    try:
        alone = [kind.decode(own, frame) for own, frame in zip(drawn, frames, strict=True)]
    except MixgymError as error:  # weights may be asked for where nothing is left
        with pytest.raises(MixgymError, match=str(error)):
            kind.weights(drawn, batch)
        return
    top, inner = kind.weights(drawn, batch)
    assert top.tolist() == [mixture.sources.tolist() for mixture in alone]
    assert inner.tolist() == [mixture.strata.tolist() for mixture in alone]


def test_a_batch_of_the_wrong_size_is_refused_in_a_sentence() -> None:
    options = EnvironmentOptions(learner="curves", max_sources=3, max_strata=2)
    core = CurvesCore(2, [sample_task(0, sources=3, strata=2)], options)
    core.reset()
    with pytest.raises(MixgymError, match="action has 8 entries, 9 expected"):
        core.step(np.zeros((2, 8)))
    nudged = CurvesCore(2, [sample_task(0, sources=3, strata=2)], options.model_copy(
        update={"action": "nudge"}))  # fmt: skip
    nudged.reset()
    with pytest.raises(MixgymError, match="one whole number"):
        nudged.step(np.zeros(3))
