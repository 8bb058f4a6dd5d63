from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.normalisers import NORMALISERS, StepTokens, token_weights

# replica 0: (2 tokens, loss 4) and (8, 8); replica 1: (10, 30) and (20, 20)
HAND = StepTokens(np.array([2, 8, 10, 20]), np.arange(4), np.array([0, 0, 1, 1]), 2)
SUMS = np.array([4.0, 8.0, 30.0, 20.0])


@pytest.mark.parametrize(
    ("name", "loss", "weights"),
    [
        ("token", 1.55, [0.025] * 4),
        ("ave_token", 1.55, [0.025] * 4),
        ("ave_token_printed", 1.55, [0.025] * 4),
        ("token_mean_per_replica", 1.433333, [0.05, 0.05, 1 / 60, 1 / 60]),
        ("sample_mean", 1.75, [0.125, 0.03125, 0.025, 0.0125]),
        ("sum", 31.0, [0.5] * 4),
        ("longalign", 1.75, [0.125, 0.03125, 0.025, 0.0125]),
    ],
)
def test_the_worked_example(name: str, loss: float, weights: list[float]) -> None:
    found = token_weights(name, HAND)
    assert found == pytest.approx(weights)
    assert float(found @ SUMS) == pytest.approx(loss, abs=1e-5)


def test_every_normaliser_is_tested_by_hand() -> None:
    assert set(NORMALISERS) == {
        "token",
        "ave_token",
        "ave_token_printed",
        "token_mean_per_replica",
        "sample_mean",
        "sum",
        "longalign",
    }


def test_the_printed_average_weighs_replicas_with_fewer_packs_twice() -> None:
    step = StepTokens(np.array([10, 10, 10]), np.arange(3), np.array([0, 0, 1]), 2)
    assert token_weights("ave_token_printed", step) == pytest.approx([0.025, 0.025, 0.05])
    assert token_weights("ave_token", step) == pytest.approx([1 / 30] * 3)


STEPS = st.integers(1, 4).flatmap(
    lambda replicas: st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, replicas - 1)),
        min_size=1,
        max_size=20,
    ).map(
        lambda rows: StepTokens(
            np.array([r[0] for r in rows]),
            # packs are of one replica
            np.array([10 * r[2] + r[1] for r in rows]),
            np.array([r[2] for r in rows]),
            replicas,
        )
    )
)


@settings(max_examples=150)
@given(STEPS)
def test_the_corrected_average_is_the_global_token_mean_for_every_count(step: StepTokens) -> None:
    found = token_weights("ave_token", step)
    assert found == pytest.approx(token_weights("token", step))
    total = step.supervised.sum()
    assert found == pytest.approx(np.full(len(found), 1 / total if total else 0.0))
    # transformers' form: replicas * sum / global count, averaged over the replicas
    count = max(total, 1)
    assert found * (total > 0) == pytest.approx(
        np.full(len(found), step.replicas / count / step.replicas * (total > 0))
    )


@settings(max_examples=150)
@given(STEPS, st.sampled_from(sorted(NORMALISERS)))
def test_weights_are_finite_and_all_but_the_sum_average(step: StepTokens, name: str) -> None:
    found = token_weights(name, step)
    assert np.isfinite(found).all()
    mass = float(found @ step.supervised)
    busy = len(np.unique(step.replica[step.supervised > 0]))
    if name == "sum":
        assert mass == pytest.approx(step.supervised.sum() / step.replicas)
    elif name in ("token_mean_per_replica", "sample_mean"):
        assert mass == pytest.approx(busy / step.replicas)  # replicas without tokens add nothing
    elif name != "ave_token_printed":
        assert mass == pytest.approx(float(busy > 0))


@settings(max_examples=100)
@given(STEPS, st.integers(0, 2**31))
def test_the_token_mean_and_longalign_do_not_depend_on_packs_or_replicas(
    step: StepTokens, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    n = len(step.supervised)
    moved = StepTokens(step.supervised, generator.integers(0, 7, n), generator.integers(0, 5, n), 5)
    for name in ("token", "ave_token", "longalign"):
        assert token_weights(name, moved) == pytest.approx(token_weights(name, step))


def test_a_replica_without_tokens_makes_no_nan() -> None:
    step = replace(HAND, supervised=np.array([2, 8, 0, 0]))
    for name in NORMALISERS:
        found = token_weights(name, step)
        assert np.isfinite(found).all()
        assert found[0] > 0


def test_an_unknown_normaliser_is_told_the_names() -> None:
    with pytest.raises(ConfigError, match="'mean' is unknown: choose one of token"):
        token_weights("mean", HAND)
