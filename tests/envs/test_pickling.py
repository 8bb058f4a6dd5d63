"""Environments are values: pickled and deep-copied ones go on bit-equal, or say why not."""

import copy
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.build import build_environment
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import MixgymError
from mixgym.envs.levels.batch_global import GlobalLevel
from mixgym.envs.levels.batch_local import local_rows
from mixgym.envs.options import WorldOptions
from mixgym.envs.probes import BILEVEL_GAIN, PROBES
from mixgym.envs.registration import ENVIRONMENTS

SHORT = {"steps": 6, "interval": 2}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"environment": {"tasks": "train"}},
    {"environment": {"tasks": "validation", "step_rule": "bilevel"}},
    {"environment": {"tasks": "train", "reward": "log_utility", "reference": "here"}},
]
WAYS = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "deepcopy": copy.deepcopy,
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
}


def plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: plain(part) for name, part in values.items() if name[0] != "_"}
    if isinstance(values, tuple):
        return [plain(part) for part in values]
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.tolist()
    return values if isinstance(values, bool | int | float) else None


def go_on(env: Any, steps: int = 5, seed: int = 0) -> list[Any]:
    """Steps of random actions, over the end of an episode; resets by hand go on with the stream."""
    env.action_space.seed(seed)
    found = []
    for _ in range(steps):
        found.append(plain(env.step(env.action_space.sample())))
        if found[-1][2] is True:
            found.append(plain(env.reset()))
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_goes_on_from_its_copy(
    name: str, options: dict[str, Any], way: str
) -> None:
    for env in (
        gym.make(name, training=SHORT, **options),
        gym.make_vec(name, num_envs=2, training=SHORT, **options),
    ):
        untouched = WAYS[way](env)
        env.reset(seed=3)
        untouched.reset(seed=3)
        go_on(env, 2)
        other = WAYS[way](env)
        assert go_on(other) == go_on(env)
        env.reset(seed=3)
        assert go_on(untouched, 2) == go_on(env, 2), "copied before the first reset"


@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_with_every_probe_and_padding(observation: str) -> None:
    probes = {name: 1 for name in PROBES if name != BILEVEL_GAIN}
    environment = {"observation": observation, "probes": probes, "reference": "here"}
    options = {"environment": {"tasks": "test", "max_sources": 13, **environment}}
    name = "mixgym/Mixture-v0"
    for env in (gym.make(name, **options), gym.make_vec(name, 3, **options)):
        env.reset(seed=1)
        go_on(env, 1)
        assert go_on(pickle.loads(pickle.dumps(env)), 3) == go_on(env, 3)


def test_batches_of_stable_baselines_go_on_too() -> None:
    for make in (lambda env: env, GlobalLevel, local_rows):
        env: Any = make(CurvesVecEnv(2, decisions=3))  # type: ignore[operator]
        env.reset()
        rows = np.zeros((env.num_envs, *env.action_space.shape), np.float32)
        env.step(rows)
        other = pickle.loads(pickle.dumps(env))
        for _ in range(4):
            a, b = env.step(rows), other.step(rows)
            assert a[0].tolist() == b[0].tolist()
            assert a[1].tolist() == b[1].tolist()
    vector = DummyVecEnv([lambda: gym.make("mixgym/Mixture-v0")])
    vector.reset()
    twin = cloudpickle.loads(cloudpickle.dumps(vector))
    action = np.zeros((1, 20), np.float32)
    assert twin.step(action)[0].tolist() == vector.step(action)[0].tolist()


def test_a_pickle_holds_no_table_of_thousands_of_tasks() -> None:
    env = gym.make_vec("mixgym/Mixture-v0", num_envs=2, environment={"tasks": "train"})
    env.reset(seed=0)
    assert len(pickle.dumps(env)) < 500_000


def test_a_language_model_says_what_to_do_instead(tmp_path: Path) -> None:
    options = {
        "sources": {name: {"embedded": name, "rows": 60} for name in ("addition", "reversal")},
        "data": {"max_length": 64, "strata": 1},
        "training": {"steps": 2, "interval": 1, "packs": 1},
    }
    env = build_environment(WorldOptions.model_validate(options))
    for way in WAYS.values():
        with pytest.raises(MixgymError, match=r"use fork\(\).*save\(folder\)"):
            way(env)
    env.reset(seed=0)
    with pytest.raises(MixgymError, match="neither pickled nor deep-copied"):
        copy.deepcopy(env)
    twin = env.fork()  # what the sentence says works
    zero = np.zeros(env.action_space.shape or (), np.float32)
    assert twin.step(zero)[0].tolist() == env.step(zero)[0].tolist()
    env.save(tmp_path)
    again = build_environment(WorldOptions.model_validate(options))
    again.load(tmp_path)
    assert again.step(zero)[0].tolist() == env.step(zero)[0].tolist()
