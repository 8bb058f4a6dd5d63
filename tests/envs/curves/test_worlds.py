"""Fitted worlds as files, and tasks drawn around them."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs.curves.dynamics import CurveState, advance, nll
from mixgym.envs.curves.task import LEAST_SOURCES, MAX_SOURCES, MAX_STRATA, CurveTask
from mixgym.envs.curves.tasks.around import WorldTasks
from mixgym.envs.curves.tasks.fitted import CONSTANTS, FittedWorld, library, read_world
from mixgym.envs.curves.tasks.sets import TASK_SETS, named_tasks, stacked
from mixgym.envs.errors import ConfigError

from ..synthetic import hand_task


def hand_world(**changes: Any) -> FittedWorld:
    task = hand_task(budget=5000.0)
    return FittedWorld(
        name="hand",
        sources=("a", "b"),
        constants={name: np.array(getattr(task, name)) for name in CONSTANTS},
        spread={"scale": np.full((2, 1), 0.1), "transfer": np.full((2, 2), 0.05)},
        row_error=np.full((2, 1), 0.8),
        stays=0.9,
        budget=5000.0,
        about={"origin": "hand-made"},
        **changes,
    )


def test_a_world_is_read_as_it_was_written(tmp_path: Path) -> None:
    world, file = hand_world(), tmp_path / "hand.json"
    world.write(file)
    again = read_world(file)
    assert again.plain() == world.plain()
    tokens = np.array([[300.0], [50.0]])
    one, other = world.task(), again.task()
    after = [nll(t, advance(t, CurveState.start(t), tokens)) for t in (one, other)]
    np.testing.assert_allclose(after[0], after[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ({"format": "other/1"}, "not a fitted world"),
        ({"sources": ["a"]}, "constants.size has the shape"),
        ({"constants": {}}, "constants.size"),
        ({"spread": None}, "spread missing"),
    ],
)
def test_a_file_that_is_no_world_is_refused(
    tmp_path: Path, harm: dict[str, Any], message: str
) -> None:
    plain = {**hand_world().plain(), **harm}
    file = tmp_path / "world.json"
    file.write_text(json.dumps({k: v for k, v in plain.items() if v is not None}))
    with pytest.raises(ConfigError, match=message):
        read_world(file)


def test_numbers_that_are_none_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    plain = hand_world().plain()
    plain["constants"]["floor"][0][0] = float("nan")
    file = tmp_path / "world.json"
    file.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"constants\.floor holds a number that is not finite"):
        read_world(file)
    with pytest.raises(ConfigError, match="mixgym fit writes worlds"):
        read_world(tmp_path / "none.json")
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_world(file)


def sound(task: CurveTask) -> None:
    """What every task has to be."""
    assert LEAST_SOURCES <= len(task.targets) <= MAX_SOURCES
    assert task.size.shape[1] <= MAX_STRATA
    assert (task.targets >= 0).all()
    assert task.targets.any()
    assert (task.cost >= 1).all()
    assert (task.size > 0).any(-1).all()
    assert (task.noise >= 0).all()
    assert (task.noise <= 0.5).all()
    assert 0 < float(task.stays) < 1
    assert float(task.budget) > 0
    state = CurveState.start(task)
    for _ in range(4):
        tokens = task.size / task.size.sum() * float(task.budget / (4 * task.cost.mean()))
        state = advance(task, state, tokens)
        assert np.isfinite(nll(task, state)).all()
        assert (nll(task, state)[task.present] > 0).all()


@pytest.mark.parametrize("name", ["world-train", "world-validation", "world-test"])
def test_tasks_around_worlds_are_sound_and_the_same_every_time(name: str) -> None:
    tasks = TASK_SETS[name]
    for index in range(24):
        task, again = tasks[index], tasks[index]
        assert isinstance(task, CurveTask)
        assert isinstance(again, CurveTask)
        sound(task)
        assert all(
            np.array_equal(a, vars(again)[k]) for k, a in vars(task).items() if k in CONSTANTS
        )


def test_costs_and_errors_span_what_users_have() -> None:
    tasks = [WorldTasks().draw(seed) for seed in range(200)]
    spread = [float(t.source_cost.max() / t.source_cost.min()) for t in tasks]
    assert max(spread) > 20
    assert min(spread) < 3
    errors = np.concatenate([t.noise[t.present] for t in tasks])
    assert np.quantile(errors, 0.05) < 0.02
    assert np.quantile(errors, 0.95) > 0.1


def test_own_worlds_replace_those_of_the_package(tmp_path: Path) -> None:
    file = tmp_path / "hand.json"
    hand_world().write(file)
    tasks = named_tasks("world-validation", [str(file)])
    own = [task for task in tasks if isinstance(task, CurveTask) and len(task.targets) == 2]
    assert len(own) > len(tasks) / 2, "the hand-made world has two sources, the prior has more"
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert stacked(tasks, MAX_SOURCES, MAX_STRATA) is stacked(tasks, MAX_SOURCES, MAX_STRATA)


def test_the_package_ships_worlds_that_beat_their_nulls() -> None:
    worlds = library()
    assert len(worlds) >= 3
    for world in worlds:
        fit = world.about["fit"]
        assert fit["error"]["world"] < fit["error"]["mean"]
        assert fit["explained"] > 0.4
        assert world.about["origin"]
