from typing import Any

import numpy as np
import pytest

from mixgym.agents.mixers.minimax import DoReMi, LossProportional, RhoLoss
from mixgym.envs.errors import ConfigError

from .hand_made import Driver, signals


def test_loss_proportional_by_hand() -> None:
    seen = {"nll_train": [1.0, 3.0], "nll": [4.0, 1.0]}
    assert Driver(LossProportional())(**seen) == pytest.approx([0.25, 0.75])
    assert Driver(LossProportional(power=2.0))(**seen) == pytest.approx([0.1, 0.9])
    assert Driver(LossProportional(loss="held_out"))(**seen) == pytest.approx([0.8, 0.2])
    targets = Driver(LossProportional(targets=True))(**seen, target=[1.0, 0.5])
    assert targets == pytest.approx([0.4, 0.6])


def test_a_source_without_training_loss_counts_with_its_held_out_loss() -> None:
    weights = Driver(LossProportional())(nll_train=[1.0, 0.0], nll=[9.0, 4.0])
    assert weights == pytest.approx([0.2, 0.8])


def test_rho_loss_by_hand() -> None:
    lacking = {"nll": [2.0, 3.0, 5.0], "nll_reference": [1.5, 2.9, 5.5]}
    powers = np.exp([1.0, 0.2, -1.0])
    weights = Driver(RhoLoss(temperature=0.5), 3)(3, **lacking)
    assert weights == pytest.approx(powers / powers.sum())
    counted = Driver(RhoLoss(temperature=0.5, targets=True), 3)(3, **lacking, target=[0, 1, 1])
    assert counted == pytest.approx([0.0, *(powers[1:] / powers[1:].sum())])


def test_rho_loss_weighs_strata_on_top_of_their_natural_shares() -> None:
    cells = {
        "size": [[3.0, 1.0], [2.0, 0.0]],
        "nll": [[2.0, 3.0], [2.0, 0.0]],
        "nll_reference": [[2.0, 2.0], [1.0, 0.0]],
    }
    given = signals(nll_reference=[1.0, 1.0], cells=cells)
    _, inner = RhoLoss(temperature=1.0, strata=True).weights(given, ())
    assert inner is not None
    first = np.array([3.0, 1.0]) * np.exp([0.0, 1.0])
    assert inner[0] / inner[0].sum() == pytest.approx(first / first.sum())
    assert inner[1, 1] == 0.0
    assert inner[1, 0] > 0.0


def test_doremi_by_hand() -> None:
    drive = Driver(DoReMi(rate=np.log(2.0), smoothing=0.1, average=False))
    reference = [2.0, 2.5]
    assert drive(nll=[3.0, 2.0], nll_reference=reference).tolist() == [0.5, 0.5]
    # excess (1, 0), the negative one clipped: (2/3, 1/3), smoothed
    weights = drive(nll=[3.0, 2.0], nll_reference=reference)
    assert weights == pytest.approx([0.9 * 2 / 3 + 0.05, 0.9 / 3 + 0.05])
    again = drive(nll=[3.0, 2.0], nll_reference=reference)
    odds = 2.0 * weights[0] / weights[1]
    assert again[0] == pytest.approx(0.9 * odds / (1 + odds) + 0.05)


def test_doremi_may_play_the_mean_of_its_weights() -> None:
    drive = Driver(DoReMi(rate=np.log(2.0), smoothing=0.0, average=True))
    for _ in range(2):
        weights = drive(nll=[3.0, 2.0], nll_reference=[2.0, 2.5])
    assert weights == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 2 + 1 / 3) / 2])


def test_doremi_clips_token_by_token_through_its_probe() -> None:
    drive = Driver(DoReMi(rate=1.0, smoothing=0.0, clip="tokens", average=False))
    probes = {"excess_loss": [[0.2, 0.4], [0.1, np.nan]]}
    cells = {"size": [[30.0, 10.0], [20.0, 0.0]]}
    drive(probes=probes, cells=cells)
    weights = drive(probes=probes, cells=cells)
    assert weights[0] / weights[1] == pytest.approx(np.exp(0.25 - 0.1))
    assert drive(probes=probes, cells=cells, fresh=False) == pytest.approx(weights)


@pytest.mark.parametrize("rule", [RhoLoss(), DoReMi()])
def test_without_a_reference_the_error_says_what_to_set(rule: Any) -> None:
    with pytest.raises(ConfigError, match=r"set environment\.reference to the folder"):
        Driver(rule)()


def test_without_its_probe_doremi_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"set environment\.probes\.excess_loss to a period"):
        Driver(DoReMi(clip="tokens"))()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LossProportional(loss="test"), r"options\.loss=test: unknown \(known: train, he"),
        (lambda: LossProportional(power=0), r"power=0: must be a positive number"),
        (lambda: LossProportional(targets="yes"), r"targets=yes: must be true or false"),  # type: ignore[arg-type]
        (lambda: RhoLoss(temperature=0.0), r"temperature=0\.0: must be a positive number"),
        (lambda: RhoLoss(strata=1), r"strata=1: must be true or false"),  # type: ignore[arg-type]
        (lambda: DoReMi(rate=-1.0), r"rate=-1\.0: must be a positive number"),
        (lambda: DoReMi(smoothing=1.5), r"smoothing=1\.5: must be a number in \[0, 1\]"),
        (lambda: DoReMi(clip="rows"), r"clip=rows: unknown \(known: source, tokens\)"),
        (lambda: DoReMi(period=0), r"period=0: must be a whole number, 1 or more"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
