"""Rankings of schedulers in two tables: by hand, and where they cannot be compared."""

from pathlib import Path

import numpy as np
import pytest

from mixgym.envs.errors import ConfigError
from mixgym.trainer.worlds.transfer import ceiling, compared, differences, read_scores, spearman

NAMES = ("uniform", "a", "b", "c", "d")


def scores(means: list[float], tasks: int = 12, noise: float = 0.0) -> dict[str, dict[str, float]]:
    """Schedulers with these means over tasks that differ more than they do."""
    rng = np.random.default_rng(0)
    level = 10.0 * rng.standard_normal(tasks)
    return {
        name: {f"t{i}": mean + level[i] + noise * rng.standard_normal() for i in range(tasks)}
        for name, mean in zip(NAMES, means, strict=True)
    }


def test_rankings_by_hand() -> None:
    real = scores([3.0, 2.8, 3.1, 2.9, 3.3])
    world = scores([3.0, 2.8, 3.1, 3.2, 3.3])
    found = compared(real, world, "uniform")
    assert found.agents == ("a", "c", "uniform", "b", "d")
    assert found.real == pytest.approx([-0.2, -0.1, 0.0, 0.1, 0.3])
    assert found.world == pytest.approx([-0.2, 0.2, 0.0, 0.1, 0.3])
    assert found.world_rank.tolist() == [0, 3, 1, 2, 4]
    # squared differences of ranks 0 4 1 1 0: 1 - 6 * 6 / (5 * 24)
    assert found.correlation == pytest.approx(0.7)
    assert found.share == pytest.approx([0, 4 / 6, 1 / 6, 1 / 6, 0])
    assert found.low == found.high == pytest.approx(0.7), "tasks without noise rank alike"
    assert found.ceiling == pytest.approx(1.0)
    assert found.real_error == pytest.approx(np.zeros(5), abs=1e-12)


def test_only_what_both_tables_hold_is_ranked() -> None:
    real, world = scores([3.0, 2.8, 3.1, 2.9, 3.3]), scores([3.0, 2.8, 3.1, 2.9, 3.3])
    del world["c"]
    assert compared(real, world, "uniform").agents == ("a", "uniform", "b", "d")
    assert compared(real, world, "uniform").correlation == pytest.approx(1.0)
    with pytest.raises(ConfigError, match=r"rankings of uniform, a: give at least three"):
        compared(real, {name: world[name] for name in ("uniform", "a")}, "uniform")
    with pytest.raises(ConfigError, match="proportional among them"):
        compared(real, world, "proportional")


def test_a_task_that_somebody_did_not_finish_is_left_out_of_all() -> None:
    table = scores([3.0, 2.8, 3.1, 2.9, 3.3], tasks=4)
    del table["a"]["t2"]
    assert differences(table, NAMES, "uniform").shape == (5, 3)
    for task in ("t0", "t1"):
        del table["b"][task]
    with pytest.raises(ConfigError, match="1 tasks were finished by all of uniform, a"):
        differences(table, NAMES, "uniform")


def test_noise_lowers_the_ceiling_and_widens_the_interval() -> None:
    means, exact = [3.0, 2.8, 3.1, 2.9, 3.3], scores([3.0, 2.8, 3.1, 2.9, 3.3])
    some = compared(scores(means, noise=0.4), exact, "uniform")
    assert some.ceiling < 0.97
    assert some.high > some.low
    nothing = np.random.default_rng(1).standard_normal((8, 400))
    assert ceiling(nothing) < 0.6
    assert np.isnan(ceiling(nothing[:, :3]))
    again = compared(scores(means, noise=0.4), exact, "uniform")
    assert (again.low, again.ceiling) == (some.low, some.ceiling), "deterministic"


def test_ties_share_their_rank() -> None:
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])) == pytest.approx(1.0)
    assert spearman(np.zeros(3), np.arange(3.0)) == 0.0


def test_a_table_of_runs_is_read_by_task_or_by_seed(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(
        "agent,task,seed,target_mean\nuniform,x,0,3.0\nuniform,x,1,4.0\nuniform,y,0,1.0\n"
        "ucb,x,0,\nucb,y,0,2.0\n"
    )
    assert read_scores(file) == {"uniform": {"x": 3.5, "y": 1.0}, "ucb": {"y": 2.0}}
    file.write_text("agent,seed,mean\nuniform,0,3.0\nuniform,1,4.0\n")
    assert read_scores(file) == {"uniform": {"0": 3.0, "1": 4.0}}
    file.write_text("who,seed,mean\nuniform,0,3.0\n")
    with pytest.raises(ConfigError, match=r"columns agent, task .* found mean, seed, who"):
        read_scores(file)
