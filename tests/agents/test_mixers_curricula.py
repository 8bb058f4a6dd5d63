import numpy as np
import pytest

from mixgym.agents.mixers.curricula import EasyToHard, HardToEasy
from mixgym.envs.errors import ConfigError

from .hand_made import signals

SIZES = [[200.0, 100.0, 100.0], [20.0, 10.0, 10.0]]


def inner(rule: EasyToHard, used: float, sizes: list[list[float]] = SIZES) -> np.ndarray:
    """Weights over the strata, each row normalised where it has any."""
    top, rows = rule.weights(signals(used=used, cells={"size": sizes}), ())
    assert top.tolist() == [1.0, 1.0]
    return rows / np.maximum(rows.sum(-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("used", [0.0, 0.5, 1.0])
def test_the_curriculum_by_hand(used: float) -> None:
    # natural shares 2 : 1 : 1 times exp(-((rank - used) / 0.5)^2) at ranks 0, 1/2, 1
    bell = np.exp(-((np.array([0.0, 0.5, 1.0]) - used) ** 2) * 4.0) * [2, 1, 1]
    for row in inner(EasyToHard(width=0.5), used):
        assert row == pytest.approx(bell / bell.sum())


def test_it_moves_from_easy_to_hard_and_its_reverse_back() -> None:
    easy = [inner(EasyToHard(), used)[0, 0] for used in (0.0, 0.5, 1.0)]
    hard = [inner(EasyToHard(), used)[0, 2] for used in (0.0, 0.5, 1.0)]
    assert easy == sorted(easy, reverse=True)
    assert hard == sorted(hard)
    for used in (0.0, 0.3, 1.0):
        forth, back = inner(EasyToHard(), used), inner(HardToEasy(), 1.0 - used)
        assert forth == pytest.approx(back)


def test_a_narrow_bell_still_gives_a_weight() -> None:
    rows = inner(EasyToHard(width=1e-4), 0.3)
    assert rows.sum(-1) == pytest.approx([1.0, 1.0])
    assert rows[0, 1] == pytest.approx(1.0)


def test_ranks_count_the_strata_that_a_source_has() -> None:
    rows = inner(EasyToHard(), 1.0, [[10.0, 10.0, 0.0], [10.0, 10.0, 10.0]])
    assert rows[0, 2] == 0.0
    assert rows[0, 1] > rows[0, 0]


@pytest.mark.parametrize("kind", [EasyToHard, HardToEasy])
def test_bad_options_name_their_key(kind: type[EasyToHard]) -> None:
    with pytest.raises(ConfigError, match=r"agent\.options\.width=0\.0: must be a positive"):
        kind(width=0.0)
