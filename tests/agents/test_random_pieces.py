"""Random mixtures: pieces by the share of the budget, drawn from one number, forwards or back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.agents.agent_options import check_options
from mixgym.agents.random_pieces import (
    CENTRES,
    CONCENTRATIONS,
    MOST_CHANGES,
    RandomPieces,
    draw_pieces,
)
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError

SIZE = np.array([[400.0, 200.0], [90.0, 0.0], [0.0, 0.0], [10.0, 10.0]])


def signals(used: float) -> Signals:
    size = SIZE.sum(-1)
    inner = SIZE / np.maximum(size, 1.0)[:, None]
    return Signals(
        used,
        {"size": size, "prior": size / size.sum()},
        {"size": SIZE, "prior": inner},
    )


def played(rule: RandomPieces, used: float) -> tuple[FloatArray, FloatArray]:
    return rule.weights(signals(used), ())


@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_weights_are_a_mixture_of_what_is_there(draw: int, used: float) -> None:
    top, inner = played(RandomPieces(draw=draw), used)
    assert top.sum() == pytest.approx(1.0)
    assert top[2] == 0
    assert (top >= 0).all()
    assert inner.sum(-1) == pytest.approx([1.0, 1.0, 0.0, 1.0])
    assert inner[1, 1] == 0


def test_a_mixture_stays_until_its_share_of_the_budget() -> None:
    rule = RandomPieces(draw=5, at=[0.25, 0.5])
    mixtures = {used: played(rule, used)[0] for used in (0.0, 0.24, 0.25, 0.49, 0.5, 0.99)}
    assert (mixtures[0.0] == mixtures[0.24]).all()
    assert (mixtures[0.25] == mixtures[0.49]).all()
    assert (mixtures[0.5] == mixtures[0.99]).all()
    assert len({tuple(mixture) for mixture in mixtures.values()}) == 3


def test_the_reverse_plays_the_same_pieces_for_as_long() -> None:
    forth = RandomPieces(draw=5, at=[0.25, 0.5])
    back = RandomPieces(draw=5, at=[0.25, 0.5], reverse=True)
    for used in (0.0, 0.1, 0.3, 0.45, 0.55, 0.7, 0.9):
        for mine, other in zip(played(forth, used), played(back, 0.999 - used), strict=True):
            assert (mine == other).all()
    assert (played(forth, 0.0)[0] != played(back, 0.0)[0]).any()


def test_what_is_given_is_not_drawn_and_the_rest_stays() -> None:
    free = RandomPieces(draw=7).drawn
    assert RandomPieces(draw=7, concentration=2.5).drawn.at == free.at
    assert RandomPieces(draw=7, at=[]).drawn.at == ()
    again = RandomPieces(names=(), **RandomPieces(draw=7, reverse=True).options())
    assert (again.drawn, again.reverse) == (free, True)


def test_draws_cover_what_they_may_be() -> None:
    draws = [draw_pieces(number) for number in range(400)]
    assert {draw.centre for draw in draws} == set(CENTRES)
    assert {draw.concentration for draw in draws} == set(CONCENTRATIONS)
    assert {len(draw.at) for draw in draws} == set(range(MOST_CHANGES + 1))
    constant = np.mean([not draw.at for draw in draws])
    # a quarter, and a ninth of the rest: 1/3; four standard errors of 400 draws are 0.094
    assert constant == pytest.approx(1 / 3, abs=0.094)
    assert all(list(draw.at) == sorted(draw.at) for draw in draws)


@pytest.mark.parametrize("centre", CENTRES)
def test_a_high_concentration_stays_at_the_centre(centre: Any) -> None:
    rule = RandomPieces(draw=1, centre=centre, concentration=1e7, at=[])
    top, inner = played(rule, 0.0)
    size = SIZE.sum(-1)
    even = np.array([1, 1, 0, 1]) / 3
    assert top == pytest.approx(size / size.sum() if centre == "prior" else even, abs=1e-3)
    assert inner[0] == pytest.approx([2 / 3, 1 / 3], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draw": -1}, "draw=-1: must be an integer"),
        ({"centre": "middle"}, "centre=middle: must be one of prior, uniform"),
        ({"concentration": 0}, "concentration=0: must be positive"),
        ({"at": [0.5, 1.0]}, r"at: 1.0 is no share"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RandomPieces(**options)


def test_its_options_are_known() -> None:
    check_options("random_pieces", {"draw": 1, "centre": None, "at": [], "reverse": True})
