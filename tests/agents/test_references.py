from typing import Any

import numpy as np
import pytest

from mixgym.agents.references import EasyToHard, Exp3
from mixgym.envs.errors import ConfigError
from mixgym.envs.observations import View, dict_observation

SHAPE = (2, 3)


def seen(used: float = 0.0, **changes: Any) -> dict[str, np.ndarray]:
    """Two sources of three strata with natural shares 1/2, 1/4, 1/4."""
    size = np.array([[200.0, 100.0, 100.0], [20.0, 10.0, 10.0]])
    ones = np.ones(SHAPE)
    values: dict[str, Any] = {
        "remaining": 1.0 - used,
        "reward": 0.0,
        "targets": np.array([1.0, 1.0]),
        "prior": np.array([0.5, 0.5]),
        "weight": np.array([0.5, 0.5]),
        "share": np.zeros(2),
        "nll": np.array([2.0, 2.0]),
        "nll_before": np.array([2.0, 2.0]),
        "nll_start": np.array([2.0, 2.0]),
        "nll_train": np.ones(2),
        "mean_nll": 2.0,
        "mean_nll_start": 2.0,
        "cell_size": size,
        "cell_prior": ones / 3,
        "cell_weight": ones / 3,
        "cell_epochs": np.zeros(SHAPE),
        "cell_nll": ones,
        "cell_nll_before": ones,
        "cell_nll_start": ones,
        "available": size > 0,
    }
    return dict_observation(View(**{**values, **changes}), SHAPE)[0]


def weights(action: np.ndarray) -> np.ndarray:
    top = action[:2]
    return top / top.sum()


@pytest.mark.parametrize("used", [0.0, 0.5, 1.0])
def test_the_curriculum_by_hand(used: float) -> None:
    action, _ = EasyToHard(width=0.5).predict(seen(used))
    # natural shares 2 : 1 : 1 times exp(-((rank - used) / 0.5)^2) at ranks 0, 1/2, 1
    bell = np.exp(-((np.array([0.0, 0.5, 1.0]) - used) ** 2) * 4.0) * [2, 1, 1]
    inner = action[2:].reshape(SHAPE)
    for row in inner:
        assert row / row.sum() == pytest.approx(bell / bell.sum(), abs=1e-6)
    assert weights(action).tolist() == [0.5, 0.5]


def test_the_curriculum_moves_from_easy_to_hard() -> None:
    hard = [EasyToHard().predict(seen(used))[0][4] for used in (0.0, 0.5, 1.0)]
    easy = [EasyToHard().predict(seen(used))[0][2] for used in (0.0, 0.5, 1.0)]
    assert hard == sorted(hard)
    assert easy == sorted(easy, reverse=True)


def test_exp3_by_hand() -> None:
    rule = Exp3(rate=1.0, explore=0.2)
    action, state = rule.predict(seen())
    assert weights(action).tolist() == [0.5, 0.5]  # nothing is known yet
    # source 0 fell by 0.4 of 2, source 1 by 0.1: x = (0.4, 0.1) at weights of a half
    action, state = rule.predict(seen(nll=np.array([1.6, 1.9])), state)
    soft = np.exp([1.0, 0.25])
    assert weights(action) == pytest.approx(0.8 * soft / soft.sum() + 0.1, abs=1e-6)
    # then source 1 alone falls, by 0.2 at weight 0.25: x = 0.4, as large as the largest so far
    later = seen(nll=np.array([1.6, 1.7]), weight=np.array([0.75, 0.25]))
    action, _ = rule.predict(later, state)
    soft = np.exp([1.0, 1.25])
    assert weights(action) == pytest.approx(0.8 * soft / soft.sum() + 0.1, abs=1e-5)


def test_exp3_is_not_paid_for_what_is_no_target() -> None:
    rule = Exp3()
    targets = np.array([0.0, 1.0])
    _, state = rule.predict(seen(targets=targets))
    action, _ = rule.predict(seen(targets=targets, nll=np.array([1.0, 1.9])), state)
    assert weights(action)[1] > 0.9


def test_exp3_forgets_at_the_start_of_an_episode() -> None:
    rule = Exp3()
    batch = {name: value[None] for name, value in seen().items()}
    fallen = {name: value[None] for name, value in seen(nll=np.array([1.0, 2.0])).items()}
    _, state = rule.predict(batch)
    kept, _ = rule.predict(fallen, state, np.array([False]))
    fresh, _ = rule.predict(fallen, state, np.array([True]))
    assert weights(kept[0])[0] > 0.9
    assert weights(fresh[0]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EasyToHard(width=0.0), r"agent\.options\.width=0\.0: must be positive"),
        (lambda: Exp3(rate=0.0), r"rate=0\.0 must be positive"),
        (lambda: Exp3(explore=0.0), r"explore=0\.0 in \(0, 1\]"),
    ],
)
def test_bad_options_name_their_key(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
