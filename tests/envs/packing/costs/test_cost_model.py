from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError, PackingError
from mixgym.envs.packing.balance import Balance
from mixgym.envs.packing.costs.cost_model import CostModel, cost_terms, exchanged_bytes
from mixgym.envs.packing.costs.descriptions import (
    HARDWARE,
    MODELS,
    PUBLISHED_PROFILE,
    dense_model,
    model_of,
)
from mixgym.envs.packing.costs.rate_fitting import (
    ProfilePoint,
    fit_hardware,
    non_negative_least_squares,
)
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.grouping.selection import (
    ProfileRules,
    candidate_degrees,
    candidate_lengths,
    checkpointed_layers,
    select_groups,
)
from mixgym.envs.packing.grouping.verdict import judge
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.trainer.simulate.mixes import long_tail, paper_like

K = 1024
LLAMA, H100 = MODELS["llama-3.1-8b"], HARDWARE["32xh100"]
COST = CostModel(LLAMA, H100)
CLUSTER = Cluster(32, 512 * K)


def test_the_shape_of_llama() -> None:
    assert pytest.approx(13.96e9, rel=1e-3) == LLAMA.layer_flops
    assert pytest.approx(1.05e9, rel=1e-2) == LLAMA.head_flops
    assert LLAMA.attention_flops == 262_144


def test_one_long_pack_moves_27_gigabytes_per_device() -> None:
    group = Group(128 * K, 8, 28)
    assert exchanged_bytes(LLAMA, 128 * K, group) == pytest.approx(27.0e9, rel=0.01)
    full = replace(LLAMA, key_value_heads=32)
    ratio = exchanged_bytes(full, 128 * K, group) / exchanged_bytes(LLAMA, 128 * K, group)
    assert ratio == pytest.approx(1.6)
    assert exchanged_bytes(LLAMA, 16 * K, Group(16 * K, 1, 28)) == 0


def test_few_key_value_heads_are_sent_more_than_once() -> None:
    """16 devices need 16 key-value heads, and there are 8: more is sent than for 8 devices."""
    per_token = {
        degree: exchanged_bytes(LLAMA, 128 * K, Group(128 * K, degree, 28)) * degree / (128 * K)
        for degree in (8, 16)
    }
    assert per_token[16] > 1.2 * per_token[8]


def test_seconds_of_an_iteration_by_hand() -> None:
    """512K tokens in documents of 600 in 16K packs; and one document of 128K."""
    short = COST.micro_step(16 * K, 16 * K * 600, Group(16 * K, 1, 28))
    assert float(short.dense) + float(short.recompute) == pytest.approx(2.05, rel=0.01)
    assert float(short.total) == pytest.approx(2.29, rel=0.01)
    long = COST.micro_step(128 * K, (128 * K) ** 2, Group(128 * K, 8, 28))
    assert float(long.communication) == pytest.approx(0.135, rel=0.01)
    assert float(long.total) == pytest.approx(10.1, rel=0.01)


def test_published_times_are_met_within_six_per_cent() -> None:
    for point in PUBLISHED_PROFILE:
        found = point.micro_steps * float(
            COST.micro_step(point.tokens, point.work, point.group).total
        )
        assert found == pytest.approx(point.seconds, rel=0.06), point


def test_the_stated_rates_are_those_of_the_fit() -> None:
    fit = fit_hardware(PUBLISHED_PROFILE, LLAMA, H100, {"link_rate": 200e9})
    assert np.abs(fit.errors).max() < 0.06
    for name in ("dense_rate", "attention_rate", "node_link_rate", "fixed_seconds"):
        assert getattr(fit.hardware, name) == pytest.approx(getattr(H100, name), rel=0.03), name


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_a_fit_finds_the_machine_that_made_the_profile(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = replace(
        H100,
        dense_rate=generator.uniform(1e14, 1e15),
        attention_rate=generator.uniform(1e14, 1e15),
        link_rate=generator.uniform(1e10, 1e12),
        node_link_rate=generator.uniform(1e9, 1e11),
        fixed_seconds=generator.uniform(0.01, 1),
    )
    groups = [Group(g * K, p, c) for g, p, c in ((16, 1, 8), (32, 2, 0), (64, 8, 28), (128, 16, 9))]
    points = [
        ProfilePoint(
            tokens,
            work,
            group,
            float(CostModel(LLAMA, truth).micro_step(tokens, work, group).total),
        )
        for group in groups
        for tokens in (group.length, group.length // 3)
        for work in (tokens * 500, tokens**2)
    ]
    fit = fit_hardware(points, LLAMA, H100)
    assert np.abs(fit.errors).max() < 1e-6
    assert fit.hardware.dense_rate == pytest.approx(truth.dense_rate, rel=1e-3)
    assert fit.hardware.node_link_rate == pytest.approx(truth.node_link_rate, rel=1e-3)


def test_least_squares_with_a_bound_meets_the_optimality_conditions() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        columns, target = generator.normal(size=(9, 4)), generator.normal(size=9)
        found = non_negative_least_squares(columns, target)
        gradient = columns.T @ (columns @ found - target)
        assert (found >= 0).all()
        assert np.abs(gradient[found > 0]).max(initial=0) < 1e-9
        assert (gradient[found == 0] > -1e-9).all()


def test_a_profile_that_says_too_little_is_refused() -> None:
    few = PUBLISHED_PROFILE[:3]
    with pytest.raises(ConfigError, match="3 points cannot tell dense_rate, attention_rate"):
        fit_hardware(few, LLAMA, H100)
    alike = [replace(PUBLISHED_PROFILE[0], seconds=s) for s in (4.4, 4.5, 4.3, 4.6)]
    with pytest.raises(ConfigError, match="do not tell dense_rate"):
        fit_hardware(alike, LLAMA, H100)
    with pytest.raises(ConfigError, match="0 points cannot tell"):
        fit_hardware([], LLAMA, H100)
    with pytest.raises(ConfigError, match="have to be positive"):
        fit_hardware([replace(few[0], seconds=0.0)], LLAMA, H100)


def test_memory_by_the_published_pairs() -> None:
    layers = {n: H100.checkpointed(n * K, 32) for n in (1, 2, 4, 8, 16, 32)}
    assert layers == {1: 0, 2: 0, 4: 8, 8: 23, 16: 28, 32: None}


def test_layers_to_checkpoint_from_two_measurements() -> None:
    assert checkpointed_layers(24.0, 12.0, 32, 20) == 8
    assert checkpointed_layers(24.5, 12.5, 32, 20) == 8  # half a layer does not help
    assert checkpointed_layers(24.0, 12.0, 32, 20, margin=3.0) == 11
    assert checkpointed_layers(64.0, 52.0, 32, 20) == 0
    with pytest.raises(ConfigError, match="have to leave less"):
        checkpointed_layers(12.0, 12.0, 32, 20)
    with pytest.raises(ConfigError, match="higher degree"):
        checkpointed_layers(1.0, 0.5, 32, 20, margin=2.0)


def test_candidates() -> None:
    assert candidate_lengths(96) == [6, 12, 24, 48, 96]
    assert candidate_lengths(6) == [3, 6]
    assert candidate_degrees(8, 12) == [1, 2, 4]
    assert candidate_degrees(1, 12) == [1]


def select(lengths: np.ndarray, rules: ProfileRules | None = None) -> list[tuple[int, int]]:
    chosen = select_groups(
        lengths, candidate_lengths(128 * K), (1, 2, 4, 8, 16), COST, CLUSTER, rules=rules
    )
    return [(group.length // K, group.degree) for group in chosen.groups]


@pytest.mark.parametrize("seed", range(3))
def test_selection_finds_the_published_groups(seed: int) -> None:
    assert select(paper_like(94_170, np.random.default_rng(seed))) == [(16, 1), (128, 8)]


def test_random_packs_in_the_profile_favour_too_large_a_degree() -> None:
    lengths = paper_like(94_170, np.random.default_rng(0))
    assert select(lengths, ProfileRules(balanced=False, common=False))[-1] == (128, 16)


def test_cutting_documents_at_each_candidate_favours_short_packs() -> None:
    lengths = long_tail(4000, np.random.default_rng(0))
    assert select(lengths) == [(16, 1), (128, 8)]
    assert select(lengths, ProfileRules(common=False))[0] == (8, 1)


def test_two_devices_for_the_best_length_add_a_group_that_needs_none() -> None:
    """With 32K at degree 2 the best, documents up to 16K are trained alone."""
    lengths = paper_like(20_000, np.random.default_rng(0))
    chosen = select_groups(lengths, (32 * K, 128 * K), (2, 4, 8), COST, CLUSTER)
    assert [(g.length // K, g.degree) for g in chosen.groups] == [(16, 1), (32, 2), (128, 8)]


def test_a_length_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="packs of 131072 tokens do not fit"):
        select_groups(np.array([9]), (128 * K,), (1, 2), COST, CLUSTER)


def test_documents_that_are_all_long_can_be_profiled() -> None:
    lengths = np.full(400, 100 * K)
    groups = select_groups(lengths, candidate_lengths(128 * K), (1, 8), COST, CLUSTER).groups
    assert groups[-1].length == 128 * K


@pytest.mark.parametrize("documents", [[128 * K], [600] * 50, [600] * 5000, [90, 128 * K]])
def test_few_or_equal_documents_are_repeated_for_the_profile(documents: list[int]) -> None:
    """Else replicas would be idle, and high degrees would seem fast."""
    assert select(np.array(documents)) == [(16, 1), (128, 8)]


def test_no_document_and_an_empty_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="no document to choose groups of lengths for"):
        select(np.zeros(0, np.int64))
    with pytest.raises(PackingError, match="has 0 tokens: skip rows without tokens"):
        select(np.array([0]))


@settings(max_examples=50)
@given(
    st.integers(1, 2**17),
    st.integers(1, 2**17),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 32),
)
def test_less_work_is_never_slower(tokens: int, fewer: int, degree: int, layers: int) -> None:
    low, high = sorted((tokens, fewer))
    group = Group(2**17, degree, layers)
    whole = COST.micro_step(high, high**2, group)
    assert float(COST.micro_step(high, high * low, group).total) <= float(whole.total)
    assert float(COST.micro_step(low, low**2, group).total) <= float(whole.total)
    terms = cost_terms(LLAMA, high, high**2, degree, layers)
    assert (terms.exchanged_bytes > 0) == (degree > 1)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 128 * K), min_size=1, max_size=200), st.integers(0, 99))
def test_waiting_only_adds_and_work_is_a_bound(lengths: list[int], seed: int) -> None:
    groups = (Group(16 * K, 1, 28), Group(128 * K, 8, 28))
    layout = make_plan(np.array(lengths), PlanConfig(groups, CLUSTER), seed).layout
    seconds, bound = COST.seconds(layout), COST.seconds_without_waiting(layout)
    device_seconds = float((COST.units(layout) * layout.degrees[layout.row]).sum())
    assert seconds >= bound * (1 - 1e-12)
    assert bound == pytest.approx(device_seconds / 32)
    parts = COST.parts(layout)
    assert sum(parts.values()) == pytest.approx(seconds)
    assert parts["waiting"] >= -1e-9


def test_the_verdict_says_when_the_hierarchy_is_not_worth_it() -> None:
    lengths = paper_like(30_000, np.random.default_rng(0))
    config = PlanConfig((Group(16 * K, 1, 28), Group(128 * K, 8, 28)), CLUSTER)
    fast, slow = (judge([lengths], config, COST.with_link_rate(rate), 0) for rate in (1e14, 25e9))
    assert "not worth it here" in fast.sentence
    assert fast.saved < 0.02
    assert "another" in slow.sentence
    assert slow.saved > 0.1
    assert slow.hierarchy.seconds >= slow.hierarchy.no_wait
    assert slow.unsorted.seconds > slow.one_length.seconds
    halves = judge([lengths[:15_000], lengths[15_000:]], config, COST, 0).hierarchy
    assert halves.metrics.steps >= slow.hierarchy.metrics.steps
    assert halves.metrics.tokens_per_device == pytest.approx(16 * K, rel=0.05)
    alone = judge([lengths], replace(config, groups=config.groups[-1:]), COST, 0)
    assert alone.saved == 0
    nothing = judge([np.zeros(0, np.int64)], config, COST, 0)
    assert (nothing.unsorted.seconds, nothing.saved) == (0, 0)
    assert nothing.sentence == "there is nothing to pack"
    single = judge([np.array([128 * K])], config, COST, 0)
    assert "the hierarchy of lengths saves 0.0% beside" in single.sentence


def test_sorting_in_windows_gives_part_of_the_gain() -> None:
    lengths = paper_like(94_170, np.random.default_rng(0))
    group = (Group(128 * K, 8, 28),)
    seconds = [
        COST.seconds(make_plan(lengths, PlanConfig(group, CLUSTER, balance=balance), 0).layout)
        for balance in (Balance(sort=False), Balance(window=8), Balance())
    ]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[2] > 1.35


def test_shapes_are_read_from_configurations_of_transformers() -> None:
    from transformers import GPT2Config, LlamaConfig

    llama = LlamaConfig(
        num_hidden_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
    )
    assert model_of(llama, element_bytes=2) == LLAMA
    found = model_of(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100))
    assert (found.layers, found.heads, found.key_width, found.head_flops) == (2, 4, 16, 12_800)
    assert (
        dense_model(
            layers=1,
            hidden=8,
            heads=2,
            key_value_heads=2,
            feed_forward=1,
            vocabulary=1,
            head_dim=16,
        ).key_width
        == 16
    )

    class Bare:
        def get_text_config(self) -> object:
            return object()

    with pytest.raises(ConfigError, match="Bare lacks hidden size"):
        model_of(Bare())
