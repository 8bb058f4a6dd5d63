from typing import Any

import numpy as np
import pytest
import torch

from mixgym.agents.mixers.alignment import DoGE, Less
from mixgym.agents.mixers.source_actor import MoS, MultiDDS, ascend
from mixgym.envs.errors import ConfigError

from .hand_made import Driver, signals


def test_doge_by_hand() -> None:
    drive = Driver(DoGE(rate=1.0, smoothing=0.0), 3)
    third = 1.0 / 3.0
    unknown = {"gradient_alignment": np.full(3, np.nan)}
    assert drive(3, probes=unknown, fresh=False) == pytest.approx([third] * 3)
    # mean size 2: W = (0.5, -0.5 clipped to 0, 2)
    probes = {"gradient_alignment": [1.0, -1.0, 4.0]}
    powers = np.exp([0.5, 0.0, 2.0])
    weights = drive(3, probes=probes)
    assert weights == pytest.approx(powers / powers.sum())
    assert drive(3, probes=probes, fresh=False) == pytest.approx(weights)
    assert drive(3, probes=probes) == pytest.approx(powers**2 / (powers**2).sum())


def test_doge_signed_smoothed_and_averaged() -> None:
    probes = {"gradient_alignment": [1.0, -1.0]}
    soft = 1.0 / (1.0 + np.exp(-2.0))
    signed = Driver(DoGE(rate=1.0, smoothing=0.0, signed=True))
    assert signed(probes=probes)[0] == pytest.approx(soft)
    smooth = Driver(DoGE(rate=1.0, smoothing=0.5, signed=True))
    assert smooth(probes=probes)[0] == pytest.approx(0.5 * soft + 0.25)
    mean = Driver(DoGE(rate=1.0, smoothing=0.0, signed=True, average=True))
    mean(probes=probes, fresh=False)
    assert mean(probes=probes)[0] == pytest.approx(0.5 * (0.5 + soft))


def test_doge_clips_a_source_that_stands_out() -> None:
    values = np.full(12, 0.01)
    values[0] = 100.0  # twelve times the mean size, nearly
    drive = Driver(DoGE(rate=1.0, smoothing=0.0), 12)
    weights = drive(12, probes={"gradient_alignment": values})
    assert weights[0] / weights[1] == pytest.approx(np.exp(5.0), rel=0.01)


def test_doge_universal_reads_the_influence() -> None:
    drive = Driver(DoGE(mode="universal"))
    assert drive(probes={"gradient_influence": [2.0, 1.0]})[0] > 0.5


def test_less_by_hand() -> None:
    drive = Driver(Less(temperature=0.5, discount=0.5), 3)
    assert (
        drive(3, probes={"projected_alignment": [np.nan] * 3}, fresh=False).tolist() == [1 / 3] * 3
    )
    powers = np.exp(np.array([1.0, -0.5, 0.25]) / 0.5)
    probes = {"projected_alignment": [0.2, -0.1, 0.05]}
    assert drive(3, probes=probes) == pytest.approx(powers / powers.sum())
    # scores 0.1, -0.05, 0.025 are left, and the new ones added
    powers = np.exp(np.array([0.3, -0.05, 0.025]) / 0.3 / 0.5)
    probes = {"projected_alignment": [0.2, 0.0, 0.0]}
    assert drive(3, probes=probes) == pytest.approx(powers / powers.sum())


def test_the_gradient_of_the_actor_by_hand() -> None:
    # R = (2, 1, 1), p = (0.5, 0.3, 0.2): R - sum R p = (0, -0.2, 0.2); Adam's first step is a sign
    logits = np.log([0.5, 0.3, 0.2])
    before, mask = logits.copy(), np.ones(3, np.bool_)
    moments = (np.zeros(3), np.zeros(3))
    ascend(logits, moments, np.zeros(1), np.array([2.0, 1.0, 1.0]), mask, rate=0.1, steps=1)
    assert logits - before == pytest.approx([0.0, -0.1, 0.1], abs=1e-6)
    assert moments[0] == pytest.approx([0.0, -0.02, 0.02])


@pytest.mark.parametrize("scaled", [False, True])
def test_the_actor_steps_as_torch_does(scaled: bool) -> None:
    rewards = np.array([0.5, 0.7, -0.2, 1.1])
    start = np.array([0.1, -0.2, 0.3, 0.0])
    logits, moments, clock = start.copy(), (np.zeros(4), np.zeros(4)), np.zeros(1)
    mask = np.ones(4, np.bool_)
    theirs = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=1e-2)
    for factor in (1.0, 0.5):  # moments last from one measurement to the next
        ascend(logits, moments, clock, factor * rewards, mask, rate=1e-2, steps=50, scaled=scaled)
        for _ in range(50):
            adam.zero_grad()
            weights = theirs.softmax(0)
            pulls = factor * torch.tensor(rewards)
            if scaled:
                pulls = pulls * weights.detach()
            (-(pulls * torch.log(weights)).sum()).backward()
            adam.step()
    assert logits == pytest.approx(theirs.detach().numpy(), abs=1e-9)
    assert clock.tolist() == [100.0]


def test_the_actor_ends_at_rewards_over_their_sum() -> None:
    drive = Driver(MultiDDS(rate=1e-2), 4)
    for _ in range(40):
        weights = drive(4, probes={"gradient_cosine": [0.1, 0.2, 0.3, 0.4]})
    assert weights == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_the_actor_starts_at_the_prior() -> None:
    given = {"prior": [0.8, 0.2], "probes": {"gradient_cosine": [np.nan, np.nan]}, "fresh": False}
    assert Driver(MultiDDS())(**given) == pytest.approx([0.8, 0.2])
    assert Driver(MultiDDS(tau=2.0))(**given) == pytest.approx([2 / 3, 1 / 3])


def test_the_published_step_hardly_moves() -> None:
    drive = Driver(MultiDDS(rate=1e-4, steps=200))
    weights = drive(probes={"gradient_cosine": [1.0, 0.0]})
    # two logits move by 200 * 1e-4 each, apart
    assert np.log(weights[0] / weights[1]) == pytest.approx(0.04, rel=0.01)


def test_rewards_of_mos_are_averaged_from_one() -> None:
    rule = MoS(new=0.9)
    drive = Driver(rule)
    drive(probes={"cosine_similarity": [3.0, 1.0]})
    assert drive.memory[3] == pytest.approx([2.8, 1.0])
    drive(probes={"cosine_similarity": [2.0, 1.0]})
    assert drive.memory[3] == pytest.approx([2.08, 1.0])


def test_difficulty_of_mos_is_the_mean_over_a_sources_rows() -> None:
    drive = Driver(MoS(reward="difficulty", new=1.0))
    cells = {"size": [[30.0, 10.0], [20.0, 0.0]]}
    drive(probes={"perplexity_ratio": [[0.5, 0.9], [0.4, np.nan]]}, cells=cells)
    assert drive.memory[3] == pytest.approx([0.6, 0.4])


def test_a_source_without_a_measurement_stays_in_the_middle() -> None:
    drive = Driver(MultiDDS(rate=1e-2), 3)
    for _ in range(40):
        weights = drive(3, probes={"gradient_cosine": [0.2, np.nan, 0.4]})
    assert weights[0] < weights[1] < weights[2]


@pytest.mark.parametrize("rule", [DoGE(), Less(), MultiDDS(), MoS(), MoS(reward="difficulty")])
def test_without_its_probe_a_rule_says_what_to_set(rule: Any) -> None:
    memory = tuple(np.zeros(shape) for shape in rule.shapes(2, 2))
    with pytest.raises(ConfigError, match=r"set environment\.probes\.\w+ to a period in decisions"):
        rule.weights(signals(), memory)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DoGE(mode="all"), r"options\.mode=all: unknown \(known: target, universal\)"),
        (lambda: DoGE(rate=0.0), r"rate=0\.0: must be a positive number"),
        (lambda: DoGE(period=0), r"period=0: must be a whole number, 1 or more"),
        (lambda: Less(temperature=-1.0), r"temperature=-1\.0: must be a positive number"),
        (lambda: Less(discount=1.5), r"discount=1\.5: must be a number in \[0, 1\]"),
        (lambda: MultiDDS(steps=0), r"steps=0: must be a whole number, 1 or more"),
        (lambda: MultiDDS(tau=0.0), r"tau=0\.0: must be a positive number"),
        (lambda: MoS(reward="loss"), r"reward=loss: unknown \(known: similarity, difficulty\)"),
        (lambda: MoS(new=0.0), r"new=0\.0: must be a number in \(0, 1\]"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
