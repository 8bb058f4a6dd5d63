"""The parts on their own: words, order statistics, geometry, conversions, parameters."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixgym.trainer.merging.methods.element_choice import (
    Lots,
    choose,
    places_of,
    redraw,
    unequal,
    zero_places,
)
from mixgym.trainer.merging.methods.geometry import slerp, spherical_mean
from mixgym.trainer.merging.methods.numerics import (
    STORAGE,
    bits_of,
    decode,
    encode,
    first_nonfinite,
    round_to_odd,
)
from mixgym.trainer.merging.methods.parameters import depth_of, layer_of, value_at
from mixgym.trainer.merging.methods.radix import RankSelector
from mixgym.trainer.merging.methods.random_words import Draw, RepeatedDraw, WordStream, thresholds
from mixgym.trainer.merging.methods.sums import GramSum

FLOATS32 = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)


# words


def test_words_are_golden():
    words = WordStream(0, "select", "model.layers.0.mlp.up_proj.weight").words(0, 1000)
    digest = hashlib.sha256(words.astype("<u4").tobytes()).hexdigest()
    assert digest == "7c9fcc08a6798391ea3f9c20d02b82cb093225578dead850bdd72bf8e417b0ff"


@given(st.integers(0, 500), st.integers(1, 300))
def test_words_have_random_access(start, size):
    stream = WordStream(3, "bernoulli", "w", 1)
    whole = stream.words(0, start + size)
    assert np.array_equal(stream.words(start, start + size), whole[start:])


@given(st.integers(0, 2**32), st.integers(0, 10_000))
@example(0, 0)
@example(2**32, 0)
@example(2**31, 5)
def test_below_compares_whole_words(threshold, start):
    stream = WordStream(1, "select", "w")
    draw = Draw(stream, start, stream.heads(start, start + 200))
    assert np.array_equal(draw.below(threshold), stream.words(start, start + 200) < threshold)


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=6), st.integers(0, 10_000))
@example([2**24, 2**24 + 5, 0, 2**32 - 1, 2**32], 3)
def test_below_each_compares_with_every_threshold(edges, start):
    stream = WordStream(1, "select", "w")
    draw = Draw(stream, start, stream.heads(start, start + 3000))
    words = stream.words(start, start + 3000)
    found = draw.below_each(edges, [np.empty(3000, np.bool_) for _ in edges])
    for threshold, below in zip(edges, found, strict=True):
        assert np.array_equal(below, words < threshold)


def test_below_completes_words_at_the_border():
    stream = WordStream(1, "select", "w")
    words = stream.words(0, 1000)
    threshold = int(words[500])
    draw = Draw(stream, 0, stream.heads(0, 1000))
    assert not draw.below(threshold)[500]
    assert draw.below(threshold + 1)[500]


@given(st.integers(1, 50), st.integers(0, 300), st.integers(1, 200))
def test_repeated_words(run, start, size):
    stream = WordStream(1, "select", "w")
    draw = RepeatedDraw(stream, start, start + size, run)
    words = stream.words(0, (start + size - 1) // run + 1)[np.arange(start, start + size) // run]
    assert np.array_equal(draw.words_at(np.arange(size)), words)
    assert np.array_equal(draw.below(2**31), words < 2**31)


def test_streams_differ_by_seed_name_purpose_and_model():
    streams = [
        WordStream(0, "select", "w"),
        WordStream(1, "select", "w"),
        WordStream(0, "select", "v"),
        WordStream(0, "bernoulli", "w"),
        WordStream(0, "bernoulli", "w", 0),
        WordStream(0, "bernoulli", "w", 1),
    ]
    assert len({stream.words(0, 8).tobytes() for stream in streams}) == len(streams)


def test_words_look_uniform():
    words = WordStream(0, "select", "w").words(0, 1 << 20)
    for shift in (0, 8, 16, 24):
        counts = np.bincount(words >> np.uint32(shift) & np.uint32(255), minlength=256)
        expected = words.size / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - 255) < 6 * math.sqrt(2 * 255)


def test_thresholds():
    assert thresholds(np.array([1.0, 1.0, 2.0])) == [2**30, 2**31, 2**32]
    assert thresholds(np.array([0.0, 1.0, 0.0])) == [0, 2**32, 2**32]


# order statistics


def select_top(values, count, work, step):
    selector = RankSelector(lambda n, nonzero: [count], np.dtype(work))
    for stage in range(selector.passes):
        for i in range(0, values.size, step):
            selector.observe(stage, values[i : i + step])
        selector.finish(stage)
    top = selector.top_set(0)
    return np.concatenate([top.keep(values[i : i + step]) for i in range(0, values.size, step)])


@settings(max_examples=60)
@given(FLOATS32, st.integers(0, 300), st.integers(1, 64), st.sampled_from([np.float32, np.float64]))
def test_top_set_equals_a_stable_sort(values, count, step, work):
    count = min(count, values.size)
    values = np.abs(values).astype(work)
    kept = np.flatnonzero(select_top(values, count, work, step))
    assert kept.tolist() == sorted(np.argsort(-values, kind="stable")[:count].tolist())


@pytest.mark.parametrize(
    "values",
    [
        np.full(100, 0.25),
        np.zeros(100),
        np.full(100, 1e-42),
        np.random.default_rng(0).standard_normal(1000) * 1e-41,
        np.random.default_rng(1).standard_normal(5000),
    ],
)
def test_threshold_equals_kthvalue(values):
    size = np.abs(values).astype(np.float32)
    count = int(0.3 * size.size)
    kept = select_top(size, count, np.float32, 333)
    assert int(kept.sum()) == count
    threshold = torch.from_numpy(size).kthvalue(size.size - count + 1).values
    assert float(size[kept].min()) == float(threshold)


# geometry and sums


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_gram_coefficients_equal_the_direct_slerp(seed, t):
    a, b = np.random.default_rng(seed).standard_normal((2, 5))
    gram = GramSum(2)
    gram.add([a, b])
    c = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    angle = np.arccos(c)
    want = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    one, two = slerp(gram.matrix, t)
    if abs(c) <= 0.9995:
        np.testing.assert_allclose(one * a + two * b, want, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_karcher_mean_is_a_fixed_point(seed, models):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((models, 9)) + 1.5
    gram = vectors @ vectors.T
    weights = rng.random(models) + 0.1
    mean = spherical_mean(gram, weights, 500, 1e-14) @ vectors
    norm = np.linalg.norm(mean)
    assert norm == pytest.approx(
        float(weights / weights.sum() @ np.linalg.norm(vectors, axis=1)), rel=1e-9
    )
    mean /= norm
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ mean
    flat = units - np.outer(cosines, mean)
    logs = flat * (np.arccos(cosines) / np.linalg.norm(flat, axis=1))[:, None]
    assert np.linalg.norm(weights / weights.sum() @ logs) < 1e-9


def test_opposite_vectors_have_no_mean_direction():
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert spherical_mean(gram, np.ones(2), 10, 1e-9).tolist() == [0.5, 0.5]


def test_zero_vectors_are_harmless():
    assert np.isfinite(slerp(np.zeros((2, 2)), 0.3)).all()
    assert np.isfinite(spherical_mean(np.zeros((2, 2)), np.ones(2), 10, 1e-9)).all()
    assert np.isfinite(spherical_mean(np.diag([0.0, 1.0]), np.ones(2), 10, 1e-9)).all()


@pytest.mark.parametrize("step", [4096, 8192, 65536])
def test_sums_do_not_depend_on_chunks(step):
    x, y = np.random.default_rng(0).standard_normal((2, 100_001)).astype(np.float32)
    gram = GramSum(2)
    for i in range(0, x.size, step):
        gram.add([x[i : i + step], y[i : i + step]])
    whole = GramSum(2)
    whole.add([x, y])
    assert np.array_equal(gram.matrix, whole.matrix)
    assert whole.matrix[0, 1] == pytest.approx(float(x.astype(float) @ y.astype(float)), rel=1e-9)


# conversions


@given(hnp.arrays(np.float64, 50, elements=st.floats(-(2.0**100), 2.0**100)))
def test_float64_rounds_once_to_bfloat16(values):
    got = encode(values, STORAGE["BF16"], np.empty(50, np.uint16))
    exact = decode(got, STORAGE["BF16"], np.empty(50))
    bits = got.astype(np.int64)
    for step in (-1, 1):
        near = (bits + step).clip(0, 0xFFFF).astype(np.uint16)
        other = decode(near, STORAGE["BF16"], np.empty(50))
        usable = np.isfinite(other) & (np.signbit(other) == np.signbit(exact))
        gap, other_gap = np.abs(values - exact), np.abs(values - other)
        assert (gap <= other_gap)[usable].all()


def test_round_to_odd_breaks_a_double_rounding():
    # just above a bfloat16 midpoint, by less than float32 can see
    value = np.array([1 + 2**-8 + 2**-40])
    assert encode(value, STORAGE["BF16"], np.empty(1, np.uint16))[0] == 0x3F81
    assert round_to_odd(np.array([1.5]))[0] == 1.5


@given(FLOATS32)
def test_encode_agrees_with_torch(values):
    got = encode(values, STORAGE["BF16"], np.empty(values.size, np.uint16))
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(got.view(np.int16), want)


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_first_nonfinite(kind, bad):
    values = np.array([1.0, -2.0, bad, 0.0, bad])
    raw = np.empty(5, STORAGE[kind].storage)
    if kind == "BF16":
        raw[:] = torch.tensor(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    else:
        raw[:] = values
    assert first_nonfinite(raw, STORAGE[kind]) == 2
    assert first_nonfinite(raw[:2].copy(), STORAGE[kind]) is None
    assert first_nonfinite(raw[:0].copy(), STORAGE[kind]) is None


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_signed_zeros_are_equal(kind):
    one = np.array([0.0, -0.0, 1.0, -1.0, 0.0, -0.0, 2.0, 0.0], kind)
    two = np.array([-0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0], kind)
    zeros = zero_places(bits_of(two))
    assert zeros.tolist() == [0, 1, 6, 7]
    found = unequal(bits_of(one), bits_of(two), zeros, np.empty(8, np.bool_))
    assert found.tolist() == (one != two).tolist()


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_single_zero_is_found(zero):
    values = np.array([1.0, -1.0, zero, 3.0], np.float32)
    assert zero_places(bits_of(values)).tolist() == [2]
    assert zero_places(bits_of(values[[0, 1, 3]])).size == 0
    assert zero_places(bits_of(values[:0])).size == 0


@pytest.mark.parametrize("size", [65_536, 150_000])
def test_choose_over_blocks(size):
    rng = np.random.default_rng(size)
    candidates = list(rng.integers(0, 2**32, (3, size), dtype=np.uint32))
    wanted = rng.integers(0, 3, size)
    out = np.empty(size, np.uint32)
    choose(candidates[::-1], [wanted <= k for k in range(2)], out)
    assert np.array_equal(out, np.choose(wanted, candidates))


@given(st.integers(1, 5), st.integers(0, 1000))
def test_choose_takes_the_candidate_that_is_wanted(models, seed):
    rng = np.random.default_rng(seed)
    candidates = list(rng.integers(0, 2**16, (models, 40), dtype=np.uint16))
    wanted = rng.integers(0, models, 40)
    out = np.empty(40, np.uint16)
    choose(candidates[::-1], [wanted <= k for k in range(models - 1)], out)
    assert np.array_equal(out, np.choose(wanted, candidates))


@given(hnp.arrays(np.bool_, st.integers(0, 80)))
def test_places_of_every_flag(flags):
    assert places_of(flags).tolist() == np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("share", [0.0, 0.002, 0.04, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 4096, 4099])
def test_places_of_few_and_many(share, size):
    flags = np.random.default_rng(0).random(size) < share
    assert places_of(flags).tolist() == np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("models", [2, 3, 8, 9, 12])
def test_lots_among_open_models(models):
    rng = np.random.default_rng(models)
    n = 20_000
    shares = rng.dirichlet(np.full(models, 3.0))
    is_open = [rng.random(n) < 0.6 for _ in range(models)]
    words = rng.integers(0, 2**31, n, dtype=np.uint32)
    picked = Lots(shares).draw(is_open, words)
    weights = np.stack(is_open) * shares[:, None]
    wanted = (words / 2**31 * weights.sum(0) >= np.cumsum(weights, 0)[:-1]).sum(0)
    assert np.mean(picked == wanted) > 0.9999, "but for words at a border"
    some = np.logical_or.reduce(is_open)
    assert np.stack(is_open)[picked, np.arange(n)][some].all()


@pytest.mark.parametrize("word", [0, 2**31 - 1])
def test_extreme_words_draw_open_models(word):
    lots = Lots(np.array([0.2, 0.5, 0.3]))
    for k in range(3):
        only = [np.array([k == j]) for j in range(3)]
        assert lots.draw(only, np.array([word], np.uint32)).tolist() == [k]


@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([None, 1, 2, 9]))
def test_redraws_take_survivors(seed, models, rounds):
    rng = np.random.default_rng(seed)
    differs = [rng.random(200) < 0.5 for _ in range(models)]
    first = rng.integers(0, models, 200)
    for k in range(models):
        differs[k] &= first != k
    some = np.logical_or.reduce(differs)
    differs = [d[some] for d in differs]
    words = lambda turn: rng.integers(0, 2**31, some.sum(), dtype=np.uint32)  # noqa: E731
    lots = Lots(np.full(models, 1 / models))
    picked = redraw(words, first[some], differs, lots, rounds)
    survived = np.stack(differs)[picked, np.arange(picked.size)]
    if rounds in (None, 9):
        assert survived.all()
    if rounds == 1:
        assert (picked != first[some]).all()


# parameters


def test_layers_and_depth():
    assert layer_of("transformer.h.3.attn.c_attn.weight") == 3
    assert layer_of("lm_head.weight") is None
    assert depth_of("model.embed_tokens.weight", 5) == 0.0
    assert depth_of("model.layers.2.norm.weight", 5) == 0.5
    assert depth_of("lm_head.weight", 5) == 1.0


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (0.3, "x", 0.3),
        ([0.0, 1.0], "model.layers.1.a", 0.5),
        ([0.0, 1.0, 0.0], "model.layers.1.a", 1.0),
        ([0.4], "model.layers.1.a", 0.4),
        ({"mlp": 1.0, "attn": 2.0}, "model.layers.1.attn.q", 2.0),
        ({"mlp": 1.0}, "model.layers.1.attn.q", None),
        ({r"layers\.[01]\.": 0.1, ".*": 0.9}, "model.layers.1.a", 0.1),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 7}], "model.layers.1.mlp.u", 0.5),
        ([{"filter": "mlp", "value": 1}, {"value": 7}], "model.layers.1.attn.q", 7.0),
    ],
)
def test_values_by_tensor(value, name, expected):
    assert value_at(value, name, depth_of(name, 3)) == expected
