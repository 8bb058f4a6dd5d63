from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.agents.mixers.ado import HISTORY, Ado
from mixgym.agents.mixers.aioli import Aioli, column_sums, decisions_left, detrended
from mixgym.agents.mixers.power_law import fit_power_law
from mixgym.envs.errors import ConfigError

from .hand_made import Driver


def law(tokens: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
    return floor + scale * tokens**-exponent


@settings(deadline=None, max_examples=30)
@given(
    floor=st.floats(0.0, 3.0),
    amplitude=st.floats(0.3, 4.0),
    exponent=st.floats(0.2, 1.5),
    points=st.integers(5, 30),
)
def test_an_exact_power_law_is_found(
    floor: float, amplitude: float, exponent: float, points: int
) -> None:
    tokens = np.linspace(1.0, 40.0, points) * 1e3
    losses = law(tokens, floor, amplitude * 1e3**exponent, exponent)
    found = fit_power_law(tokens, losses, np.ones(points, np.bool_))
    assert found.at(tokens) == pytest.approx(losses, rel=1e-4)
    slope = exponent * (losses[-1] - floor) / tokens[-1]
    assert float(found.slope(tokens[-1:])[0]) == pytest.approx(slope, rel=1e-2)
    assert float(found.floor) == pytest.approx(floor, abs=2e-2 * amplitude)


def test_outliers_and_noise_move_the_fit_little() -> None:
    tokens = np.linspace(1e3, 1e5, 32)
    exact = law(tokens, 1.0, 50.0, 0.5)
    wild = exact.copy()
    wild[5], wild[20] = 1.5 * wild[5], 0.8 * wild[20]
    known = np.ones(32, np.bool_)
    found = fit_power_law(tokens, wild, known)
    assert float(found.floor) == pytest.approx(1.0, abs=0.01)
    assert float(found.exponent) == pytest.approx(0.5, abs=0.01)
    noisy = exact * (1.0 + 0.005 * np.random.default_rng(0).standard_normal(32))
    found = fit_power_law(tokens, noisy, known)
    assert float(found.slope(tokens[-1:])[0]) == pytest.approx(0.5 * 50 * 1e5**-1.5, rel=0.1)


def test_fits_are_batched_and_ignore_what_is_unknown() -> None:
    tokens = np.linspace(1e3, 1e5, 12)
    rows = np.stack([law(tokens, 1.0, 50.0, 0.5), law(tokens, 2.0, 9.0, 0.3)])
    known = np.ones((2, 12), np.bool_)
    known[1, 8:] = False
    spoilt = np.where(known, rows, -7.0)
    both = fit_power_law(np.stack([tokens, tokens]), spoilt, known)
    alone = fit_power_law(tokens[:8], rows[1, :8], known[1, :8])
    assert both.floor == pytest.approx([1.0, 2.0], abs=1e-3)
    assert float(both.exponent[1]) == pytest.approx(float(alone.exponent), abs=1e-9)


def test_a_rising_loss_a_point_and_no_point_give_flat_laws() -> None:
    tokens = np.array([1e3, 2e3, 3e3])
    rising = fit_power_law(tokens, np.array([1.0, 1.1, 1.2]), np.ones(3, np.bool_))
    assert float(rising.slope(tokens[-1:])[0]) == 0.0
    for known in ([True, False, False], [False] * 3):
        found = fit_power_law(tokens, np.array([1.0, 1.1, 1.2]), np.array(known))
        assert float(found.slope(tokens[-1:])[0]) == 0.0


def test_ado_by_hand() -> None:
    laws = ((1.0, 50.0, 0.5), (2.0, 30.0, 0.3))
    rule = Ado(losses="held_out", inertia=0.5, credit=0.5, least=1e-9, points=4, noise_aware=False)
    drive = Driver(rule)
    prior = np.array([0.25, 0.75])
    played = [drive(prior=prior)]
    assert played[0] == pytest.approx(prior)
    for step in range(1, 6):
        tokens = np.array([600.0, 400.0]) * step
        nll = [law(n, *constants) for n, constants in zip(tokens, laws, strict=True)]
        played.append(drive(prior=prior, epochs=tokens / 100.0, nll=nll))
    assert played[3] == pytest.approx(prior), "three points are too few"
    # h moves from the prior towards shares of 0.6 and 0.4 by a tenth a decision
    realised = prior * 0.9**5 + np.array([0.6, 0.4]) * (1 - 0.9**5)
    slope = np.array([a * b * n ** (-a - 1) for n, (_, b, a) in zip(tokens, laws, strict=True)])
    rho = prior * slope * np.sqrt(realised)
    rho /= rho.sum()
    last = 2 * played[5] - drive.memory[5] / 6  # p = (mean + rho) / 2
    assert last == pytest.approx(rho, rel=1e-2)


def test_ado_places_a_training_loss_at_the_middle_of_its_interval() -> None:
    drive = Driver(Ado(noise_aware=False))
    drive()
    drive(epochs=[1.0, 0.0], nll_train=[3.0, 0.0])
    drive(epochs=[3.0, 1.0], nll_train=[2.0, 5.0])
    tokens, losses, count = drive.memory[:3]
    assert count.tolist() == [2.0, 1.0]
    assert tokens[0, :2].tolist() == [50.0, 200.0]
    assert losses[0, :2].tolist() == [3.0, 2.0]
    assert (tokens[1, 0], losses[1, 0]) == (50.0, 5.0)


def test_ado_on_the_axis_of_all_tokens() -> None:
    drive = Driver(Ado(axis="total", noise_aware=False))
    drive()
    drive(epochs=[1.0, 3.0], nll_train=[3.0, 5.0])
    assert drive.memory[0][:, 0].tolist() == [200.0, 200.0]


def test_ado_keeps_a_bounded_history() -> None:
    drive = Driver(Ado())
    drive()
    for step in range(1, 3 * HISTORY):
        weights = drive(epochs=[step, step], nll_train=[1 + 2 / step, 2 + 3 / step])
    assert drive.memory[2].max() <= HISTORY
    points = drive.memory[0][0, : int(drive.memory[2][0])]
    assert (np.diff(points) > 0).all(), "in order, and spread over the run"
    assert points[0] == 50.0
    assert np.isfinite(weights).all()


def test_columns_of_a_linear_law_by_hand() -> None:
    # worth 0.4 and 0.2: mixtures (3/4, 1/4) and (1/4, 3/4) bring 0.35 and 0.25
    mask = np.ones(2, np.bool_)
    assert column_sums(np.array([0.35, 0.25]), mask, 0.75) == pytest.approx([2 / 3, 1 / 3])
    # a harmful source: worth -0.1 and 0.3 bring 0 and 0.2; shifted to 0 and 0.4
    assert column_sums(np.array([0.0, 0.2]), mask, 0.75) == pytest.approx([0.0, 1.0])
    assert column_sums(np.zeros(2), mask, 0.75).tolist() == [0.0, 0.0]


@given(st.integers(2, 9), st.floats(0.51, 1.0), st.integers(0, 99))
def test_columns_are_the_solution_of_the_mixtures(count: int, one_hot: float, seed: int) -> None:
    worth = np.random.default_rng(seed).uniform(0.0, 1.0, count)
    rest = (1.0 - one_hot) / (count - 1)
    mixtures = np.full((count, count), rest) + (one_hot - rest) * np.eye(count)
    mask = np.append(np.ones(count, np.bool_), False)
    found = column_sums(np.append(mixtures @ worth, 9.0), mask, one_hot)
    assert found == pytest.approx([*(worth / worth.sum()), 0.0], abs=1e-9)


def play(rule: Aioli, worth: list[float], decisions: int, total: int) -> np.ndarray:
    """What it plays in a world where held-out loss falls by the worth of the mixture."""
    count = len(worth)
    drive, loss, weight, played = Driver(rule, count), 50.0, np.full(count, 1.0 / count), []
    for step in range(decisions):
        nll = np.full(count, loss)
        weight = drive(count, used=step / total, nll=nll, nll_start=np.full(count, 50.0))
        played.append(weight)
        loss -= float(weight @ worth)
    return np.array(played)


def test_rounds_of_aioli_by_hand() -> None:
    rule = Aioli(rate=1.0, one_hot=0.75, hold=1.5, detrend=False, warmup=0)
    played = play(rule, [0.4, 0.2], 12, 12)
    first = np.exp([2 / 3, 1 / 3])
    second = first**2 / (first**2).sum()
    first = first / first.sum()
    assert played[0] == pytest.approx([0.75, 0.25])  # each source is tried
    assert played[1] == pytest.approx([0.25, 0.75])
    assert played[2:5] == pytest.approx(np.tile(first, (3, 1)))  # played for 1.5 times as long
    assert played[5] == pytest.approx([0.25, 0.75])  # the next round tries them backwards
    assert played[6] == pytest.approx([0.75, 0.25])
    assert played[7:] == pytest.approx(np.tile(second, (5, 1))), "no room for a third round"


def test_two_sweeps_go_forth_and_back() -> None:
    played = play(Aioli(sweeps=2, one_hot=0.8, detrend=False, warmup=0), [0.3, 0.2, 0.1], 6, 100)
    assert played.argmax(-1).tolist() == [0, 1, 2, 2, 1, 0]


def test_the_time_of_a_trial_is_not_credited_to_its_source() -> None:
    trend: np.ndarray = 1.0 / (np.arange(6.0) + 0.5) ** 1.4
    assert detrended(trend, 0) == pytest.approx(np.ones(6))
    # what a mixture adds stays in, up to the part of it that looks like a trend
    bumps = np.array([1.0, 1.3, 0.8, 0.9, 1.2, 0.8])
    assert detrended(trend * bumps, 0) == pytest.approx(bumps, abs=0.15)
    rising = np.array([-1.0, -2.0, -3.0])
    assert detrended(rising, 0).tolist() == rising.tolist()


def test_few_sources_are_swept_until_there_are_six_trials() -> None:
    played = play(Aioli(one_hot=0.9, warmup=2), [0.3, 0.2], 9, 100)
    assert played[:2] == pytest.approx(np.full((2, 2), 0.5))
    assert played[2:8].argmax(-1).tolist() == [0, 1, 1, 0, 0, 1]
    assert played[8].max() < 0.9
    five = play(Aioli(one_hot=0.9, warmup=1), [0.3, 0.2, 0.2, 0.2, 0.2], 12, 100)
    assert five[1:11].argmax(-1).tolist() == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]


def test_the_source_with_the_highest_loss_is_tried_first() -> None:
    drive = Driver(Aioli(one_hot=0.9, warmup=0), 3)
    start = [2.0, 1.0, 3.0]
    tried = [int(drive(3, used=0.01 * t, nll=start, nll_start=start).argmax()) for t in range(4)]
    assert tried == [2, 0, 1, 1]


def test_aioli_without_room_for_a_round_stays_uniform() -> None:
    played = play(Aioli(), [0.3, 0.2, 0.1], 5, 5)
    assert played[1:] == pytest.approx(np.full((4, 3), 1 / 3))


def test_aioli_weighs_losses_by_the_target() -> None:
    drive = Driver(Aioli(rate=5.0, one_hot=0.75, detrend=False, warmup=0))
    target = [0.0, 1.0]
    drive(target=target, nll=[9.0, 9.0])
    drive(used=0.1, target=target, nll=[1.0, 8.9])  # a great fall of what does not count
    weights = drive(used=0.2, target=target, nll=[1.0, 8.0])
    assert weights[1] > 0.9


def test_one_source_has_all_of_it() -> None:
    played = play(Aioli(), [0.3], 6, 12)
    assert played.tolist() == [[1.0]] * 6


def test_what_is_left_of_the_run() -> None:
    assert decisions_left(0.25, 8) == 24
    assert decisions_left(1.0, 32) == 0
    assert decisions_left(0.0, 0) == np.inf


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Aioli(one_hot=0.5), r"one_hot=0\.5: must be above 0\.5 and at most 1"),
        (lambda: Aioli(sweeps=0), r"sweeps=0: must be a whole number, 1 or more"),
        (lambda: Aioli(keep=1.0), r"keep=1\.0: must be a number in \[0, 1\)"),
        (lambda: Aioli(warmup=-1), r"warmup=-1: must be a whole number, 0 or more"),
        (lambda: Aioli(hold=0.0), r"hold=0\.0: must be a positive number"),
        (lambda: Ado(points=2), r"points=2: must be a whole number, 3 or more"),
        (lambda: Ado(axis="mine"), r"axis=mine: unknown \(known: own, total\)"),
        (lambda: Ado(losses="test"), r"losses=test: unknown \(known: train, held_out\)"),
        (lambda: Ado(least=0.0), r"least=0\.0: must be a positive number"),
        (lambda: Ado(inertia=2.0), r"inertia=2\.0: must be a number in \[0, 1\]"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
