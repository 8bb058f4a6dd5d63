from typing import Any

import numpy as np
import pytest

from mixgym.agents.mixers.bandits import Exp3, Ucb
from mixgym.agents.mixers.simplex import shares, smoothed, softmax, stepped
from mixgym.envs.errors import ConfigError

from .hand_made import Driver


def test_exp3_paid_by_progress_by_hand() -> None:
    drive = Driver(Exp3(rate=1.0, explore=0.2))
    assert drive().tolist() == [0.5, 0.5]  # nothing is known yet
    # source 0 fell by 0.4 of 2, source 1 by 0.1: x = (0.4, 0.1) at weights of a half
    soft = np.exp([1.0, 0.25])
    assert drive(nll=[1.6, 1.9]) == pytest.approx(0.8 * soft / soft.sum() + 0.1)
    # then source 1 alone falls, by 0.2 at weight 0.25: x = 0.4, as large as the largest so far
    soft = np.exp([1.0, 1.25])
    weights = drive(nll=[1.6, 1.7], weight=[0.75, 0.25])
    assert weights == pytest.approx(0.8 * soft / soft.sum() + 0.1)


def test_exp3_paid_by_progress_is_not_paid_for_what_is_no_target() -> None:
    drive = Driver(Exp3())
    drive(target=[0.0, 1.0])
    assert drive(target=[0.0, 1.0], nll=[1.0, 1.9])[1] > 0.9


def test_exp3_of_the_paper_by_hand() -> None:
    drive = Driver(Exp3(variant="paper", pulls=1))
    assert drive().tolist() == [0.5, 0.5]
    # t = 1: the exploration rate is min(1/2, sqrt(ln 2 / 2)) = 1/2, so all is uniform
    assert drive(nll_train=[5.0, 3.0]).tolist() == [0.5, 0.5]
    # t = 2: scores 0.9 and 0.5 by rate 1/2, floor sqrt(0.693147 / 4) = 0.416277:
    # (1 - 0.832555) / (1 + exp(-0.2)) + 0.416277
    assert drive(nll_train=[4.0, 2.0])[0] == pytest.approx(0.508344, abs=1e-6)


def test_a_decision_of_the_paper_counts_as_many_pulls() -> None:
    drive = Driver(Exp3(variant="paper", pulls=20))
    drive()
    # R = 20 (0.5, 0.3); rate sqrt(ln 2 / (2 * 19)), floor sqrt(ln 2 / (2 * 20)) = 0.131638
    power = np.exp(0.135058 * 4.0)
    wanted = (1 - 2 * 0.131638) * power / (1 + power) + 0.131638
    assert drive(nll_train=[5.0, 3.0])[0] == pytest.approx(wanted, abs=1e-5)


def test_exp3_as_released_by_hand() -> None:
    drive = Driver(Exp3(variant="released", pulls=20, smoothing=0.5))
    assert drive().tolist() == [0.5, 0.5]
    floor = np.sqrt(np.log(2.0) / 40.0)
    # R = (e, 3)
    first = drive(nll_train=[1.0, np.log(3.0)])
    assert first[0] == pytest.approx((1 - 2 * floor) * np.e / (np.e + 3) + floor)
    # R = ((e + 5) / 2, (3 + 2) / 2), t = 40
    floor = np.sqrt(np.log(2.0) / 80.0)
    second = drive(nll_train=[np.log(5.0), np.log(2.0)])
    share = (np.e + 5) / (np.e + 5 + 5)
    assert second[0] == pytest.approx((1 - 2 * floor) * share + floor)


def test_paid_by_loss_it_loves_noise() -> None:
    for variant in ("paper", "released"):
        drive = Driver(Exp3(variant=variant))
        for step in range(20):
            weights = drive(nll_train=[5.0, 2.0 - 0.05 * step], target=[0.0, 1.0])
        assert weights[0] > 0.5, variant


def test_an_arm_that_is_never_pulled_earns_nothing() -> None:
    for variant in ("paper", "released"):
        drive = Driver(Exp3(variant=variant))
        for _ in range(3):
            weights = drive(weight=[1.0, 0.0], nll_train=[2.0, 0.0])
        assert np.isfinite(weights).all(), variant
        assert weights[1] > 0, variant
    # as released, it is taken for a mean arm, so nothing tells it from the other
    assert weights.tolist() == [0.5, 0.5]


def test_huge_losses_do_not_overflow() -> None:
    for variant in ("progress", "paper", "released"):
        drive = Driver(Exp3(variant=variant))
        drive(nll=[1e9, 1.0])
        weights = drive(nll=[1.0, 1e9], nll_train=[1e9, 1.0])
        assert np.isfinite(weights).all(), variant


def test_ucb_by_hand() -> None:
    drive = Driver(Ucb(bonus=1.0, temperature=1.0, discount=0.5))
    assert drive().tolist() == [0.5, 0.5]
    # one pull each; pay 0.4/2 and 0.1/2: means over the largest 1 and 1/4, the same bonus
    weights = drive(nll=[1.6, 1.9])
    assert weights[0] == pytest.approx(1 / (1 + np.exp(-0.75)))
    # pulls 1/2 + 2 * 3/4 = 2 and 1/2 + 1/2 = 1; pay 0.1 and 0.025 + 0.1, so means 0.05 and 0.125:
    # over the largest 0.4 and 1
    weights = drive(nll=[1.6, 1.7], weight=[0.75, 0.25])
    gap = 0.4 - 1.0 + np.sqrt(np.log(4.0)) * (1 / np.sqrt(3.0) - 1 / np.sqrt(2.0))
    assert weights[0] == pytest.approx(1 / (1 + np.exp(-gap)))


def test_ucb_explores_what_it_has_not_pulled() -> None:
    drive = Driver(Ucb(bonus=1.0))
    drive()
    weights = drive(weight=[1.0, 0.0])
    assert weights[1] > weights[0]


@pytest.mark.parametrize("kind", [Exp3, Ucb])
def test_what_was_not_trained_on_is_not_paid(kind: Any) -> None:
    # source 2 has no rows, and source 1 ran out of them; both were taught by source 0
    rows = {"size": [100.0, 100.0, 0.0], "weight": [1.0, 0.0, 0.0]}
    drive = Driver(kind(), 3)
    drive(3, **rows)
    weights = drive(3, nll=[1.9, 0.5, 0.5], **rows)
    assert weights[0] > 0.9 * weights[1]
    assert weights[2] == 0.0
    assert abs(drive.memory[1][2] if kind is Ucb else drive.memory[0][2]) == 0.0


def test_ucb_is_not_paid_for_what_is_no_target() -> None:
    drive = Driver(Ucb())
    drive(target=[0.0, 1.0])
    assert drive(nll=[0.5, 1.9], target=[0.0, 1.0])[1] > 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Exp3(rate=0.0), r"agent\.options\.rate=0\.0: must be a positive number"),
        (lambda: Exp3(explore=0.0), r"explore=0\.0: must be a number in \(0, 1\]"),
        (lambda: Exp3(smoothing=1.0), r"smoothing=1\.0: must be a number in \[0, 1\)"),
        (lambda: Exp3(pulls=0), r"pulls=0: must be a whole number, 1 or more"),
        (lambda: Exp3(pulls=True), r"pulls=True: must be a whole number"),
        (lambda: Exp3(rate=float("nan")), r"rate=nan: must be a positive number"),
        (lambda: Exp3(rate="fast"), r"rate=fast: must be a positive number"),  # type: ignore[arg-type]
        (
            lambda: Exp3(variant="odm"),
            r"variant=odm: unknown \(known: progress, paper, released\)",
        ),
        (lambda: Ucb(bonus=-1.0), r"bonus=-1\.0: must be a positive number"),
        (lambda: Ucb(discount=2.0), r"discount=2\.0: must be a number in \(0, 1\]"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_weights_by_hand() -> None:
    mask = np.array([True, True, False])
    assert softmax(np.array([0.0, np.log(3.0), 9.0]), mask) == pytest.approx([0.25, 0.75, 0.0])
    assert softmax(np.array([-1e300, 1e300, 0.0]), mask).tolist() == [0.0, 1.0, 0.0]
    assert shares(np.array([0.0, 0.0, 5.0]), mask).tolist() == [0.5, 0.5, 0.0]
    assert shares(np.array([1e308, 1e308, 1e308]), mask).tolist() == [0.5, 0.5, 0.0]
    assert shares(np.zeros(2), np.zeros(2, np.bool_)).tolist() == [0.0, 0.0]
    assert smoothed(np.array([1.0, 0.0, 0.0]), mask, 0.2) == pytest.approx([0.9, 0.1, 0.0])
    moved = stepped(np.array([0.2, 0.8, 0.0]), np.array([np.log(4.0), 0.0, 99.0]), mask)
    assert moved == pytest.approx([0.5, 0.5, 0.0])
