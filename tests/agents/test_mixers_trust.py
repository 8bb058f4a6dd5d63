"""What mixers make of errors, costs and passes: hand-worked, and a source that must not win."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.agents.mixers import trust
from mixgym.agents.mixers.ado import Ado
from mixgym.agents.mixers.aioli import Aioli
from mixgym.agents.mixers.bandits import Exp3, Ucb
from mixgym.agents.mixers.minimax import DoReMi, LossProportional, RhoLoss
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.mixers.power_law import fit_power_law
from mixgym.envs.errors import ConfigError

from .hand_made import Driver, signals

ALL = [Exp3, Ucb, Ado, Aioli, LossProportional, RhoLoss, DoReMi]


# --- the shared arithmetic ------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(0, 5))
def test_belief_keeps_the_sign_and_never_adds(gain: float, error: float) -> None:
    kept = float(trust.believed(np.array([gain]), np.array([error]))[0])
    assert abs(kept) <= abs(gain)
    assert kept * gain >= 0
    assert trust.believed(np.array([gain]), np.zeros(1))[0] == gain


def test_the_same_rows_err_less_in_a_difference() -> None:
    # sqrt(2 (1 - 0.9)) of 0.5; unknown: of the loss itself
    found = trust.moving_error(signals(error=[0.5, 0.0], nll=[2.0, 3.0]).sources)
    assert found == pytest.approx(np.sqrt(0.2) * np.array([0.5, 3.0]))
    assert trust.moving_error(signals().sources).tolist() == [0.0, 0.0]


def test_what_is_not_believed_is_carried_over() -> None:
    error = [1.0, 0.0]
    moving = np.sqrt(0.2)
    before = np.array([2.0, 2.0])
    counted, found = trust.falls_since(signals(nll=[1.8, 1.8], error=error), before, aware=True)
    # the second error is unknown, hence as large as the loss
    share = 1 / (1 + (np.array([1.0, 1.8]) * moving / 0.2) ** 2)
    assert counted == pytest.approx(0.2 * share)
    assert found == pytest.approx([0.2, 0.2])
    assert before == pytest.approx(2.0 - 0.2 * share)


def test_a_steady_fall_is_paid_in_full_in_the_end_and_wavering_pays_nothing() -> None:
    before, paid = np.array([4.0, 2.0]), np.zeros(2)
    for step in range(1, 41):
        nll = [4.0 - 0.05 * step, 2.0 + 0.05 * (-1) ** step]
        paid += trust.falls_since(signals(nll=nll, error=[0.3, 0.3]), before, aware=True)[0]
    assert paid[0] == pytest.approx(2.0, abs=0.4)
    assert abs(paid[1]) < 0.02
    plain = np.array([4.0, 2.0])
    counted, _ = trust.falls_since(signals(nll=[3.5, 2.5], error=[9.0, 9.0]), plain, aware=False)
    assert counted.tolist() == [0.5, -0.5]
    assert plain.tolist() == [3.5, 2.5]


def test_a_gain_is_charged_per_token_read_and_by_passes() -> None:
    seen = signals(3, cost=[1.0, 4.0, 16.0], epochs=[0.0, 1.0, 16.0])
    assert trust.relative_cost(seen) == pytest.approx([0.25, 1.0, 4.0])
    assert trust.charged(seen, np.ones(3)) == pytest.approx([4.0, 1.0, 0.25 / np.e])
    # harm is not excused by repetition
    assert trust.charged(seen, -np.ones(3)) == pytest.approx([-4.0, -1.0, -0.25])
    assert trust.value(seen) == pytest.approx([4.0, 1.0, 0.25 / np.e])


def test_sources_without_rows_have_no_say_in_the_usual_cost() -> None:
    seen = signals(3, cost=[2.0, 8.0, 500.0], size=[100.0, 100.0, 0.0])
    assert trust.relative_cost(seen) == pytest.approx([0.5, 2.0, 1.0])
    assert trust.relative_cost(signals(cost=[0.0, 0.0])).tolist() == [1.0, 1.0]


def test_effective_tokens_are_the_integral_of_worth() -> None:
    size, passes = 100.0, np.linspace(0.0, 40.0, 40_001)
    worth = np.exp(-np.maximum(passes - 1, 0) / trust.LASTING)
    area = size * float(((worth[1:] + worth[:-1]) / 2 * np.diff(passes)).sum())
    found = trust.effective_tokens(np.array([4000.0]), np.array([size]))
    assert float(found[0]) == pytest.approx(area, rel=1e-6)


def test_values_are_drawn_to_their_mean_by_their_error() -> None:
    found = trust.steadied(np.array([1.0, 3.0, 9.0]), np.array([1.0, 0.0, 0.0]), np.arange(3) < 2)
    assert found.tolist() == [1.5, 3.0, 9.0]


# --- a source that is measured badly, dear to read and passed often -------------------------------


class World:
    """Three sources that fall alike per token read, but for what is said.

    Source 2 is the one of which 47 tokens are read for a supervised one. Its 24 held-out rows err
    by a tenth of the loss, of which what moves is drawn anew at every measurement, and as a small
    source it is passed quickly.
    """

    cost = np.array([3.0, 6.0, 47.0])
    error = np.array([0.01, 0.02, 0.4])
    size = np.array([20_000.0, 10_000.0, 60.0])
    start = np.array([4.0, 4.0, 4.0])
    budget = 4_000.0  # tokens read in a decision

    def run(self, rule: Mixer, seed: int) -> np.ndarray:
        """Weights of every decision, [32, 3]."""
        rng, drive = np.random.default_rng(seed), Driver(rule, 3)
        given, weight, found = np.zeros(3), np.full(3, 1 / 3), []
        for step in range(32):
            fresh = trust.effective_tokens(given, self.size)
            true = 1.5 + 2.5 * (1 + fresh * self.cost / 8_000.0) ** -0.4
            moving = np.sqrt(0.1) * self.error * rng.standard_normal(3)
            weight = drive(
                3,
                used=step / 32,
                weight=weight,
                nll=true + moving,
                nll_start=self.start,
                nll_train=(true + moving) * (step > 0),
                nll_reference=[1.0, 1.0, 1.0],
                epochs=given / self.size,
                cost=self.cost,
                error=self.error,
                size=self.size,
            )
            found.append(weight)
            given = given + self.budget * weight / (weight * self.cost).sum()
        return np.array(found)


def late(rule: Mixer, seeds: int = 8) -> float:
    """Mean weight of source 2 in the second half."""
    return float(np.mean([World().run(rule, seed)[16:, 2].mean() for seed in range(seeds)]))


def test_exp3_as_measured_falls_for_it_and_noise_aware_does_not() -> None:
    assert late(Exp3(noise_aware=False)) > 0.5
    assert late(Exp3()) < 0.15


@pytest.mark.parametrize("kind", [Ucb, Ado, LossProportional, RhoLoss, DoReMi])
def test_it_does_not_win(kind: Any) -> None:
    careful, naive = late(kind()), late(kind(noise_aware=False))
    assert careful < 0.25
    assert careful < naive


def test_aioli_is_not_moved_by_a_noisy_held_out_set() -> None:
    """Nothing that is played changes anything: falls are noise, of which one set has a lot."""

    def away(aware: bool, seed: int) -> float:
        rng, drive = np.random.default_rng(seed), Driver(Aioli(warmup=0, noise_aware=aware), 3)
        for step in range(8):
            moving = np.array([0.001, 0.001, 0.1]) * rng.standard_normal(3)
            nll = 4.0 - 0.1 * step + moving
            weights = drive(3, used=step / 32, nll=nll, error=[0.01, 0.01, 0.32])
        return float(np.abs(weights - 1 / 3).sum())

    aware, plain = (np.mean([away(kind, s) for s in range(24)]) for kind in (True, False))
    assert aware < 0.75 * plain


def test_aioli_hears_what_is_measured_well() -> None:
    def last(error: float) -> np.ndarray:
        drive = Driver(Aioli(warmup=0, detrend=False, one_hot=0.75))
        for step, loss in enumerate([9.0, 8.65, 8.4]):
            weights = drive(used=step / 32, nll=[loss, loss], error=[error, error])
        return weights

    assert last(1e-6)[0] == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-3)
    assert 0.5 <= last(1.0)[0] < 0.6


# --- the pieces in their places -------------------------------------------------------------------


def test_exp3_noise_aware_by_hand() -> None:
    drive = Driver(Exp3(rate=1.0, explore=0.2))
    rows: dict[str, Any] = {"cost": [1.0, 4.0], "error": [0.4 / np.sqrt(0.2), 1e-9]}
    drive(**rows)
    # falls 0.4 and 0.2 of 2 at weights of a half: x = 0.4 and 0.2; costs 1/2 and 2 of the usual:
    # 0.8 and 0.1; of the first half is believed; over the largest as measured
    soft = np.exp([0.5, 0.125])
    assert drive(nll=[1.6, 1.8], **rows) == pytest.approx(0.8 * soft / soft.sum() + 0.1)


def test_ucb_noise_aware_by_hand() -> None:
    drive = Driver(Ucb(bonus=1e-12, temperature=1.0, discount=0.5))
    rows: dict[str, Any] = {"cost": [1.0, 4.0], "error": [0.4 / np.sqrt(0.2), 1e-9]}
    drive(**rows)
    # means 0.2 and 0.1: charged 0.4 and 0.05; of the first half is believed: over the largest
    # 0.5 and 0.125
    weights = drive(nll=[1.6, 1.8], **rows)
    assert weights[0] == pytest.approx(1 / (1 + np.exp(0.125 - 0.5)))


def test_precise_points_lead_a_fit() -> None:
    tokens = np.linspace(1e3, 1e5, 24)
    exact = 1.0 + 50.0 * tokens**-0.5
    spoilt, precision = exact.copy(), np.ones(24)
    spoilt[::3] *= 1.2
    precision[::3] = 1e-6
    known = np.ones(24, np.bool_)
    led = fit_power_law(tokens, spoilt, known, precision)
    assert float(led.exponent) == pytest.approx(0.5, abs=0.01)
    assert led.each(tokens) == pytest.approx(exact, rel=1e-3)
    alike = fit_power_law(tokens, exact, known, np.full(24, 7.0))
    assert float(alike.exponent) == pytest.approx(
        float(fit_power_law(tokens, exact, known).exponent)
    )


def test_ado_takes_the_mean_slope_where_its_fit_is_noise() -> None:
    def away(aware: bool, seed: int) -> float:
        rng = np.random.default_rng(seed)
        drive = Driver(Ado(losses="held_out", inertia=0.0, credit=0.0, noise_aware=aware), 3)
        size = [1e6] * 3
        for step in range(12):
            tokens = 1000.0 * step
            law = 1.0 + 40.0 * max(tokens, 1000.0) ** -0.5
            nll = np.array([law, law, law * np.exp(0.2 * rng.standard_normal())])
            seen = {"epochs": np.full(3, tokens) / size, "nll": nll, "error": 0.01 * nll}
            weights = drive(3, size=size, **seen)
        return float(np.abs(weights - 1 / 3).sum())

    aware, plain = (np.mean([away(kind, seed) for seed in range(12)]) for kind in (True, False))
    assert aware < 0.6 * plain


def test_doremi_and_rho_count_what_exceeds_the_error() -> None:
    rows: dict[str, Any] = {"nll": [3.0, 3.0], "nll_reference": [2.0, 2.0], "error": [1e-9, 5.0]}
    for kind in (DoReMi, RhoLoss):
        drive = Driver(kind())
        drive(**rows)
        assert drive(**rows)[0] > 0.5, kind
        plain = Driver(kind(noise_aware=False))
        plain(**rows)
        assert plain(**rows).tolist() == [0.5, 0.5], kind


@pytest.mark.parametrize("kind", ALL)
def test_the_flag_is_checked_and_saved(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"noise_aware=yes: must be true or false"):
        kind(noise_aware="yes")
    assert kind(noise_aware=False).options()["noise_aware"] is False
    assert kind().options()["noise_aware"] is True
