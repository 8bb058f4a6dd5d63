from dataclasses import replace

import numpy as np
import pytest

from mixgym.envs.curves.tasks.controls import (
    FEW_TOKENS_ERROR,
    FEW_TOKENS_STAYS,
    NOISE,
    noise_tasks,
    with_few_tokens,
)
from mixgym.envs.errors import ConfigError
from mixgym.trainer.reports.placebo import (
    Course,
    duplicate_row,
    identical_row,
    noise_row,
    paired,
    report,
)
from mixgym.trainer.reports.schedulers import VARIANTS, Scheduler, schedulers


def even(tasks: int = 4, sources: int = 3, decisions: int = 8) -> Course:
    return Course(np.full((decisions, tasks, sources), 1.0 / sources), np.full(tasks, 2.0))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, object]]:
    """The fast rules on a few tasks (HBO's and DDS's actors take longer)."""
    names = ["exp3", "ucb", "aioli", "doge", "less", "rho_loss", "loss_proportional"]
    return {row["agent"]: row for row in report(schedulers(only=names), 12)}


def test_nobody_sees_a_difference_where_there_is_none(rows: dict[str, dict[str, object]]) -> None:
    assert [name for name, row in rows.items() if not row["identical_passed"]] == []
    assert rows["uniform"]["identical_nll"] == 0.0


def test_whoever_minds_targets_drops_the_noise(rows: dict[str, dict[str, object]]) -> None:
    aware = {name: row["noise_passed"] for name, row in rows.items() if row["target_aware"]}
    assert aware == dict.fromkeys(("exp3", "ucb", "aioli", "doge", "less", "rho_loss"), True)
    assert rows["uniform"]["noise_passed"] is None
    assert rows["uniform"]["noise_late"] == pytest.approx(1.0)
    loves_noise = rows["loss_proportional"]
    assert loves_noise["noise_late"] > 1.3  # type: ignore[operator]


def test_fifty_held_out_tokens_do_no_harm(rows: dict[str, dict[str, object]]) -> None:
    assert [name for name, row in rows.items() if not row["identical_few_passed"]] == []
    found = {name: row["noise_few_late"] for name, row in rows.items() if row["target_aware"]}
    # the trials of aioli are of every source, and its falls are noise here
    assert [name for name, late in found.items() if late > 0.5] in (["aioli"], [])  # type: ignore[operator]
    assert found["aioli"] < 0.9  # type: ignore[operator]


def test_few_tokens_are_a_large_error_that_mostly_stays() -> None:
    task = with_few_tokens(noise_tasks(1)[0])
    cells, groups = task.noise[0], int(task.present[0].sum())
    assert np.sqrt((cells**2).sum()) / groups == pytest.approx(FEW_TOKENS_ERROR)
    assert float(task.stays) == FEW_TOKENS_STAYS


def test_twins_are_treated_alike(rows: dict[str, dict[str, object]]) -> None:
    for name in ("exp3", "ucb", "doge", "less", "rho_loss", "loss_proportional"):
        apart, error = rows[name]["duplicate_apart"], rows[name]["duplicate_apart_error"]
        assert abs(apart) < max(4 * error, 1e-6), name  # type: ignore[operator, arg-type]


def test_a_tilt_and_a_loss_are_both_found() -> None:
    base = even()
    assert identical_row(base, base)["identical_passed"]
    tilted = base.weights.copy()
    tilted[..., 0] += 0.05
    tilted[..., 1] -= 0.05
    row = identical_row(replace(base, weights=tilted), base)
    assert not row["identical_passed"]
    assert abs(row["identical_tilt"]) == pytest.approx(0.15)
    worse = identical_row(replace(base, mean=base.mean + 0.006), base)
    assert not worse["identical_passed"]
    noise = np.array([0.02, -0.02, 0.03, -0.01])
    assert identical_row(replace(base, mean=base.mean + noise), base)["identical_passed"]


def test_the_share_of_noise_is_read_at_the_end_too() -> None:
    base = even(decisions=32)
    weights = base.weights.copy()
    weights[-8:, :, NOISE] = 0.1
    row = noise_row(replace(base, weights=weights), base, aware=True)
    assert row["noise_late"] == pytest.approx(0.3)
    assert row["noise_share"] == pytest.approx((24 + 8 * 0.3) / 32)
    assert row["noise_passed"] is True
    assert noise_row(base, base, aware=True)["noise_passed"] is False
    assert noise_row(base, base, aware=False)["noise_passed"] is None


def test_twins_by_hand() -> None:
    base = even(sources=4)
    weights = np.broadcast_to([0.3, 0.1, 0.3, 0.3], base.weights.shape)
    row = duplicate_row(Course(np.array(weights), base.mean), base)
    assert row["duplicate_share"] == pytest.approx(0.8)
    assert row["duplicate_apart"] == pytest.approx(0.8)


def test_paired_differences_by_hand() -> None:
    mean, error = paired(np.array([1.0, 3.0]), np.array([0.0, 0.0]))
    assert mean == pytest.approx(2.0)
    assert error == pytest.approx(1.0)


def test_contenders_are_everything_that_is_ready() -> None:
    found = schedulers()
    assert next(iter(found)) == "uniform"
    assert set(VARIANTS) <= set(found)
    assert {"hbo", "doge", "mos"} <= set(found)
    assert not {"ppo", "fixed", "scripted"} & set(found)
    assert found["doge"].probes == {"gradient_alignment": 4}
    assert found["doremi"].reference
    assert all(isinstance(one, Scheduler) for one in found.values())


def test_an_unknown_contender_is_named() -> None:
    with pytest.raises(ConfigError, match=r"doggy: no such rule \(known: uniform, "):
        schedulers(only=["doggy"])
