import math

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import MixgymError
from mixgym.envs.spaces.actions import Logits, Weights, make_action_kind
from mixgym.envs.spaces.mixture import (
    Mixture,
    MixtureFrame,
    action_size,
    floored,
    join_action,
    logit_scale,
    logits_from_weights,
    normalise,
    split_action,
    weights_from_logits,
)

SEEDS = st.integers(0, 2**31)


def bounds(kind: Logits | Weights) -> tuple[float, float]:
    space = kind.space((1, 1))
    assert isinstance(space, gym.spaces.Box)
    return float(space.low[0]), float(space.high[0])


def uniform_frame(sources: int, strata: int, shape: tuple[int, int] | None = None) -> MixtureFrame:
    prior = Mixture.of(np.ones(sources) / sources, np.ones((sources, strata)) / strata)
    return MixtureFrame(prior, np.ones((sources, strata), bool), shape or (sources, strata))


def random_frame(rng: np.random.Generator, sources: int, strata: int) -> MixtureFrame:
    """A frame with some cells masked, at least one of them open, and padding."""
    mask = rng.random((sources, strata)) < 0.7
    mask[rng.integers(sources), rng.integers(strata)] = True
    prior = Mixture.of(rng.dirichlet(np.ones(sources)), rng.dirichlet(np.ones(strata), sources))
    return MixtureFrame(
        prior, mask, (sources + int(rng.integers(3)), strata + int(rng.integers(3)))
    )


@pytest.mark.parametrize(
    ("sources", "strata", "words"),
    [
        ([0.5, 0.6], [[1.0], [1.0]], "source weights must sum to 1"),
        ([1.5, -0.5], [[1.0], [1.0]], "sources must be finite and not negative"),
        ([np.nan, 1.0], [[1.0], [1.0]], "sources must be finite and not negative"),
        ([np.inf, 1.0], [[1.0], [1.0]], "sources must be finite and not negative"),
        ([0.5, 0.5], [[1.0, 0.0], [0.5, 0.4]], "strata weights must sum to 1"),
        ([0.5, 0.5], [[1.5, -0.5], [0.5, 0.5]], "strata must be finite and not negative"),
        ([0.5, 0.5], [[1.0]], r"\[K, G\] expected"),
        ([0.5, 0.5], [1.0, 1.0], r"\[K, G\] expected"),
        ([[1.0]], [[1.0]], r"\[K, G\] expected"),
    ],
)
def test_a_mixture_that_is_none_is_refused(sources: object, strata: object, words: str) -> None:
    with pytest.raises(MixgymError, match=words):
        Mixture.of(sources, strata)


def test_strata_of_a_source_without_weight_may_be_empty() -> None:
    mixture = Mixture.of([1.0, 0.0], [[0.25, 0.75], [0.0, 0.0]])
    assert mixture.cells.tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_restricted_by_hand() -> None:
    mixture = Mixture.of([0.5, 0.3, 0.2], [[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]])
    # source 0 is used up; the only weighted stratum of source 1 is; source 2 has lost its second
    rest = mixture.restricted(np.array([[False, False], [False, True], [True, False]]))
    assert rest.sources.tolist() == pytest.approx([0.0, 0.6, 0.4])
    assert rest.strata[1:].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert mixture.restricted(np.ones((3, 2), bool)).cells == pytest.approx(mixture.cells)


def test_restricted_to_nothing_is_an_error() -> None:
    mixture = Mixture.of([1.0, 0.0], [[1.0], [1.0]])
    with pytest.raises(MixgymError, match="used up"):
        mixture.restricted(np.array([[False], [True]]))


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_restricted_gives_masked_cells_nothing_and_keeps_proportions(
    seed: int, sources: int, strata: int
) -> None:
    frame = random_frame(np.random.default_rng(seed), sources, strata)
    rest = frame.prior.restricted(frame.mask)
    assert (rest.cells[~frame.mask] == 0).all()
    assert rest.cells.sum() == pytest.approx(1.0)
    left = np.flatnonzero(frame.mask.any(-1))
    ratio = rest.sources[left] / frame.prior.sources[left]
    assert ratio == pytest.approx(np.full(len(left), ratio[0]))


def test_normalise() -> None:
    weights = np.array([[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    mask = np.array([[True, True], [False, True], [False, False]])
    assert normalise(weights, mask).tolist() == [[0.25, 0.75], [0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("count", "scale"), [(2, 1.10), (4, 1.65), (8, 2.07), (22, 2.62), (100, 3.4)]
)
def test_scale_lets_one_source_reach_nine_tenths(count: int, scale: float) -> None:
    assert logit_scale(count, 0.9) == pytest.approx(scale, abs=0.01)
    action = np.full(action_size((count, 1)), -1.0)
    action[0] = 1.0
    mixture = Logits(floor=0.0).decode(action, uniform_frame(count, 1))
    assert mixture.sources[0] == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("count", [*range(1, 40), 100, 333, 1000])
def test_weights_sum_to_one_for_any_number_of_sources(count: int) -> None:
    rng = np.random.default_rng(count)
    prior, mask = rng.dirichlet(np.full(count, 0.3)), np.ones(count, bool)
    for action in (rng.uniform(-1, 1, count), np.ones(count), -np.ones(count), np.zeros(count)):
        weights = weights_from_logits(action, prior, mask, logit_scale(count, 0.9), 0.02)
        assert math.fsum(weights) == pytest.approx(1.0, abs=1e-12)
        assert (weights >= 0).all()


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_single_source_with_a_single_stratum_has_all_the_weight(value: float) -> None:
    mixture = Logits().decode(np.full(2, value), uniform_frame(1, 1))
    assert mixture.cells.tolist() == [[1.0]]


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.floats(0.0, 0.5))
def test_a_zero_action_is_the_floored_prior(
    seed: int, sources: int, strata: int, floor: float
) -> None:
    frame = random_frame(np.random.default_rng(seed), sources, strata)
    kind = Logits(floor=floor)
    mixture = kind.decode(np.zeros(action_size(frame.shape)), frame)
    open_ = frame.mask.any(-1)
    left = np.where(open_, frame.prior.sources, 0.0)
    expected = (1 - floor) * left / left.sum() + floor * open_ / open_.sum()
    assert mixture.sources == pytest.approx(expected, abs=1e-12)
    for k in np.flatnonzero(open_):
        row = np.where(frame.mask[k], frame.prior.strata[k], 0.0)
        wanted = (1 - floor) * row / row.sum() + floor * frame.mask[k] / frame.mask[k].sum()
        assert mixture.strata[k] == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_masked_cells_get_exactly_nothing(seed: int, sources: int, strata: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    for kind in (Logits(), Weights()):
        action = rng.uniform(*bounds(kind), action_size(frame.shape))
        mixture = kind.decode(action, frame)
        assert (mixture.cells[~frame.mask] == 0.0).all()
        assert (mixture.cells[frame.mask] >= 0.0).all()
        assert math.fsum(mixture.cells.ravel()) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 6), st.floats(0.0, 0.3))
def test_more_of_a_logit_is_more_of_its_source_and_less_of_all_others(
    seed: int, count: int, floor: float
) -> None:
    rng = np.random.default_rng(seed)
    prior, mask = rng.dirichlet(np.ones(count)), np.ones(count, bool)
    action = rng.uniform(-1, 0.5, count)
    k = int(rng.integers(count))
    more = action.copy()
    more[k] += 0.5
    before, after = (
        weights_from_logits(a, prior, mask, logit_scale(count, 0.9), floor) for a in (action, more)
    )
    assert after[k] > before[k]
    assert (np.delete(after, k) < np.delete(before, k)).all()


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_sources_in_another_order_get_their_weights_in_that_order(
    seed: int, sources: int, strata: int
) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    frame = MixtureFrame(frame.prior, frame.mask, (sources, strata))
    order = rng.permutation(sources)
    turned = MixtureFrame(
        Mixture(frame.prior.sources[order], frame.prior.strata[order]),
        frame.mask[order],
        frame.shape,
    )
    for kind in (Logits(), Weights()):
        action = rng.uniform(*bounds(kind), action_size(frame.shape))
        top, inner = split_action(action, frame)
        straight = kind.decode(action, frame)
        permuted = kind.decode(join_action(top[order], inner[order], turned), turned)
        assert permuted.cells == pytest.approx(straight.cells[order], abs=1e-12)


@settings(max_examples=80)
@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.floats(0.0, 0.3))
def test_an_encoded_mixture_decodes_to_itself(
    seed: int, sources: int, strata: int, floor: float
) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, sources, strata)
    kind = Logits(floor=floor)
    mixture = kind.decode(rng.uniform(-1, 1, action_size(frame.shape)), frame)
    action = kind.encode(mixture, frame)
    assert (np.abs(action) <= 1.0).all()
    again = kind.decode(action, frame)
    assert again.cells == pytest.approx(mixture.cells, abs=1e-9)


def test_encoding_a_mixture_out_of_reach_goes_as_far_as_it_can() -> None:
    frame = uniform_frame(4, 1)
    far = Mixture.of([1.0, 0.0, 0.0, 0.0], np.ones((4, 1)))
    action = Logits(floor=0.0).encode(far, frame)
    assert action[:4].tolist() == [1.0, -1.0, -1.0, -1.0]
    assert Logits(floor=0.0).decode(action, frame).sources[0] == pytest.approx(0.9)


def test_logits_from_weights_centres_the_shift() -> None:
    mask = np.ones(2, bool)
    action = logits_from_weights(np.array([0.8, 0.2]), np.array([0.5, 0.5]), mask, 2.0, 0.0)
    # log odds of 4 in all, half of it on either side, over the scale
    assert action.tolist() == pytest.approx([math.log(4) / 4, -math.log(4) / 4])


def test_maps_work_over_leading_axes() -> None:
    rng = np.random.default_rng(0)
    actions, priors = rng.uniform(-1, 1, (5, 3, 4)), rng.dirichlet(np.ones(4), (5, 3))
    masks = rng.random((5, 3, 4)) < 0.8
    whole = weights_from_logits(actions, priors, masks, 1.5, 0.1)
    for index in np.ndindex(5, 3):
        one = weights_from_logits(actions[index], priors[index], masks[index], 1.5, 0.1)
        assert whole[index].tolist() == one.tolist()
    assert floored(priors, masks, 0.1).sum(-1) == pytest.approx(masks.any(-1).astype(float))


@pytest.mark.parametrize(("infinite", "bound"), [(np.inf, 1.0), (-np.inf, -1.0)])
def test_infinite_logits_clip(infinite: float, bound: float) -> None:
    frame = uniform_frame(3, 2)
    action, clipped = np.zeros(9), np.zeros(9)
    action[[1, 4]], clipped[[1, 4]] = infinite, bound
    assert np.array_equal(
        Logits().decode(action, frame).cells, Logits().decode(clipped, frame).cells
    )


def test_infinite_weights_clip() -> None:
    frame = uniform_frame(2, 1)
    mixture = Weights().decode(np.array([np.inf, -np.inf, 0.0, 0.0]), frame)
    assert mixture.sources.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", [Logits(), Weights()])
@pytest.mark.parametrize("index", [0, 7])
def test_nan_names_its_index(kind: Logits | Weights, index: int) -> None:
    action = np.zeros(9)
    action[index] = np.nan
    with pytest.raises(MixgymError, match=rf"action\[{index}\] is NaN"):
        kind.decode(action, uniform_frame(3, 2))


def test_an_action_of_the_wrong_length_says_what_is_expected() -> None:
    with pytest.raises(MixgymError, match=r"4 entries, 9 expected \(3 sources \+ 3 x 2 strata\)"):
        Logits().decode(np.zeros(4), uniform_frame(3, 2))


def test_weights_are_said_exactly_zeros_included() -> None:
    frame = uniform_frame(3, 2, (4, 3))
    asked = Mixture.of([0.25, 0.0, 0.75], [[1.0, 0.0], [0.5, 0.5], [0.125, 0.875]])
    action = Weights().encode(asked, frame).astype(np.float32)
    assert Weights().decode(action.astype(np.float64), frame).cells.tolist() == asked.cells.tolist()


def test_weights_of_a_level_that_are_all_zero_are_the_prior() -> None:
    prior = Mixture.of([0.3, 0.7], [[0.2, 0.8], [0.6, 0.4]])
    frame = MixtureFrame(prior, np.ones((2, 2), bool), (2, 2))
    mixture = Weights().decode(np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]), frame)
    assert mixture.sources.tolist() == [0.3, 0.7]
    assert mixture.strata.tolist() == [[0.2, 0.8], [0.5, 0.5]]


def test_weights_do_not_have_to_be_normalised() -> None:
    mixture = Weights().decode(np.array([0.2, 0.6, 0.0, 0.0]), uniform_frame(2, 1))
    assert mixture.sources.tolist() == pytest.approx([0.25, 0.75])


def test_weights_on_nothing_that_is_left_are_an_error() -> None:
    prior = Mixture.of([0.5, 0.5], [[1.0], [1.0]])
    frame = MixtureFrame(prior, np.array([[True], [False]]), (2, 1))
    with pytest.raises(MixgymError, match="every source with a weight is used up"):
        Weights().decode(np.array([0.0, 1.0, 0.0, 0.0]), frame)


def test_a_source_with_every_stratum_masked_is_encoded_as_zeros() -> None:
    prior = Mixture.of([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]])
    frame = MixtureFrame(prior, np.array([[True, True], [False, False]]), (2, 2))
    mixture = Logits().decode(np.array([0.0, 0.0, 1.0, -1.0, 0.5, 0.5]), frame)
    action = Logits().encode(mixture, frame)
    assert action.tolist() == pytest.approx([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])


def test_entries_of_the_padding_do_nothing() -> None:
    frame = uniform_frame(2, 1, (4, 3))
    rng = np.random.default_rng(0)
    action = rng.uniform(0, 1, action_size(frame.shape))
    top, inner = split_action(action, frame)
    cleared = join_action(top, inner, frame)
    assert np.count_nonzero(cleared) == 4
    for kind in (Logits(), Weights()):
        assert np.array_equal(kind.decode(action, frame).cells, kind.decode(cleared, frame).cells)


def test_action_kinds_by_name() -> None:
    assert make_action_kind("logits", floor=0.1, reach=0.8) == Logits(floor=0.1, reach=0.8)
    assert make_action_kind("weights", floor=0.1, reach=0.8) == Weights()
    with pytest.raises(MixgymError, match="'logit': choose logits, delta, nudge, weights"):
        make_action_kind("logit", floor=0.1, reach=0.8)
