"""The one-line rule on sizes and costs, by hand."""

from typing import Any

import numpy as np
import pytest

from mixgym.agents.rules import CostPower
from mixgym.envs.errors import ConfigError

from .hand_made import signals


def of_signals(rule: CostPower, **columns: Any) -> list[float]:
    top, inner = rule.weights(signals(len(columns["cost"]), **columns), ())
    assert inner is None
    return [float(weight) for weight in (top / top.sum()).round(12)]


def test_cost_power_by_hand() -> None:
    cost, size = [1.0, 4.0, 16.0], [100.0, 400.0, 1600.0]
    halves = np.array([1.0, 1 / 2, 1 / 4])
    half = CostPower(size_exponent=0.0, cost_exponent=0.5)
    assert of_signals(half, cost=cost) == pytest.approx(halves / halves.sum())
    equal = CostPower(cost_exponent=1.0)
    assert of_signals(equal, cost=cost) == pytest.approx([16 / 21, 4 / 21, 1 / 21])
    both = CostPower(size_exponent=0.5, cost_exponent=0.5)
    assert of_signals(both, cost=cost, size=size) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    proportional = CostPower(size_exponent=1.0, cost_exponent=0.0)
    assert of_signals(proportional, cost=cost, size=size) == pytest.approx(
        [1 / 21, 4 / 21, 16 / 21]
    )


def test_cost_power_leaves_out_what_does_not_count_unless_told() -> None:
    rows: dict[str, Any] = {"cost": [1.0, 1.0, 1.0], "target": [0.0, 1.0, 2.0]}
    assert of_signals(CostPower(), **rows) == [0.0, 0.5, 0.5]
    assert of_signals(CostPower(pool=0.5), **rows) == pytest.approx([0.2, 0.4, 0.4])
    assert of_signals(CostPower(pool=1.0), **rows) == pytest.approx([1 / 3] * 3)
    # nothing that can be trained on counts: all of it is a pool
    rows |= {"target": [0.0, 0.0, 1.0], "size": [10.0, 20.0, 0.0]}
    assert of_signals(CostPower(size_exponent=0.0), **rows) == [0.5, 0.5, 0.0]


def test_cost_power_takes_an_unknown_cost_for_the_usual_one() -> None:
    assert of_signals(CostPower(), cost=[0.0, 0.0]) == [0.5, 0.5]
    usual = of_signals(CostPower(), cost=[1.0, 16.0, 0.0])
    assert usual == pytest.approx(of_signals(CostPower(), cost=[1.0, 16.0, 4.0]))


def test_huge_exponents_do_not_overflow() -> None:
    rule = CostPower(size_exponent=-500.0, cost_exponent=1e3)
    found = of_signals(rule, cost=[1.0, 50.0], size=[1e9, 1e3])
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": 1.5}, r"agent\.options\.pool=1\.5: must be a number in \[0, 1\]"),
        ({"cost_exponent": "half"}, r"cost_exponent=half: must be a finite number"),
        ({"size_exponent": float("nan")}, r"size_exponent=nan: must be a finite number"),
    ],
)
def test_cost_power_names_a_bad_option(options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CostPower(**options)
