"""Batches in Gymnasium's own contract: modes of autoreset, masks, infos, wrappers."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError, MixgymError
from mixgym.envs.registration import BATCHES, ENVIRONMENTS

ID = "mixgym/Mixture-v0"
UNEVEN = {"steps": 7, "interval": 2}  # four decisions, the last one shorter


def drawn(**environment: Any) -> dict[str, Any]:
    """Options of a short episode of a task that is drawn."""
    return {"environment": {"tasks": "train", **environment}, "training": UNEVEN}


DRAWN = drawn()
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
CASES = [
    (ID, DRAWN),
    (ID, {"training": UNEVEN}),
    (ID, drawn(observation="dict", action="nudge")),
    (ID, drawn(step_rule="bilevel", reward="arm")),
    ("mixgym/Global-v0", DRAWN),
    ("mixgym/Global-v0", {**DRAWN, "period": 3, "discount": 0.9}),
    ("mixgym/Local-v0", {**DRAWN, "source": 2}),
    ("mixgym/Local-v0", {"training": UNEVEN, "source": "source3"}),
]  # fmt: skip


def batch(name: str = ID, count: int = 3, **options: Any) -> Any:
    return gym.make_vec(name, num_envs=count, vectorization_mode="vector_entry_point", **options)


def sync(name: str, mode: AutoresetMode, count: int = 3, **options: Any) -> Any:
    return gym.make_vec(
        name, num_envs=count, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode}, **options,
    )  # fmt: skip


def flat(observation: Any) -> np.ndarray:
    if isinstance(observation, dict):
        return np.concatenate([observation[name] for name in sorted(observation)], -1)
    return np.asarray(observation)


def there(infos: dict[str, Any]) -> dict[str, list[bool]]:
    """The masks of what is there, whatever stands in it."""
    masks = {name: mask for name, mask in infos.items() if name[0] == "_"}
    return {name: mask.tolist() for name, mask in masks.items() if mask.any()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_batch_is_gymnasiums_own_of_single_environments(
    name: str, options: dict[str, Any], mode: AutoresetMode
) -> None:
    """Also where some are reset by hand, and episodes are out of step from then on."""
    ours, theirs = batch(name, autoreset_mode=mode, **options), sync(name, mode, **options)
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    a, first = ours.reset(seed=5)
    b, other = theirs.reset(seed=5)
    np.testing.assert_allclose(flat(a), flat(b), atol=1e-6)
    assert there(first) == there(other)
    assert there(first["start"]) == there(other["start"])
    some = {4: (None, [True, False, False]), 7: ([8, 9, 10], [True, False, True])}
    for t in range(14):
        if t in some:
            seed, mask = some[t]
            a, _ = ours.reset(seed=seed, options={"reset_mask": np.array(mask)})
            b, _ = theirs.reset(seed=seed, options={"reset_mask": np.array(mask)})
            np.testing.assert_allclose(flat(a), flat(b), atol=1e-6)
        ours.action_space.seed(t)
        action = ours.action_space.sample()
        a, rewards, ends, cuts, infos = ours.step(action)
        b, others, stops, _, expected = theirs.step(action)
        np.testing.assert_allclose(flat(a), flat(b), atol=1e-6)
        np.testing.assert_allclose(rewards, others, atol=1e-9)
        assert ends.tolist() == stops.tolist()
        assert not cuts.any()
        assert there(infos) == there(expected)
        if "final_obs" in expected:
            for mine, own in zip(infos["final_obs"], expected["final_obs"], strict=True):
                assert (mine is None) == (own is None)
                if own is not None:
                    np.testing.assert_allclose(flat(mine), flat(own), atol=1e-6)
            last = expected["final_info"]["decision"]["reward"]["global"]
            for i in np.flatnonzero(infos["_final_info"]):
                record = infos["final_info"]["decision"][i]
                assert record["reward"]["global"] == pytest.approx(last[i], abs=1e-9)


@pytest.mark.parametrize("mode", [*MODES, AutoresetMode.DISABLED])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_those_that_a_mask_names_are_reset(name: str, mode: AutoresetMode) -> None:
    env = batch(name, autoreset_mode=mode, **DRAWN)
    env.reset(seed=1)
    zero = np.zeros(env.action_space.shape, np.float32)
    before, *_ = env.step(zero)
    mask = np.array([False, True, False])
    after, info = env.reset(options={"reset_mask": mask})
    assert mask.tolist() == [False, True, False], "the mask is left alone"
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert not np.array_equal(before[1], after[1])
    assert info["_start"].tolist() == mask.tolist()
    twin = batch(name, autoreset_mode=mode, **DRAWN)
    twin.reset(seed=1)
    twin.step(zero)
    a, b = env.step(zero), twin.step(zero)
    assert np.array_equal(a[0][[0, 2]], b[0][[0, 2]]), "nor does it change what comes"
    assert a[1][[0, 2]].tolist() == b[1][[0, 2]].tolist()


def test_without_autoreset_an_environment_waits_for_its_reset() -> None:
    env = batch(autoreset_mode="Disabled", **DRAWN)
    env.reset(seed=1)
    zero = np.zeros(env.action_space.shape, np.float32)
    env.step(zero)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    for _ in range(3):
        last, _, ends, _, infos = env.step(zero)
    assert ends.tolist() == [False, True, True]
    assert "final_obs" not in infos
    assert last[1, 0] == 0, "nothing remains"
    with pytest.raises(MixgymError, match="environment 1 has ended its episode"):
        env.step(zero)
    observation, _ = env.reset(options={"reset_mask": ends})
    assert observation[:, 0].tolist() == [last[0, 0], 1, 1]
    env.step(zero)


def test_actions_of_environments_that_are_reset_are_not_read() -> None:
    env = batch(autoreset_mode=AutoresetMode.NEXT_STEP, **DRAWN)
    env.reset(seed=1)
    action = np.zeros(env.action_space.shape, np.float32)
    env.step(action)
    env.reset(options={"reset_mask": np.array([True, False, False])})
    for _ in range(3):
        _, _, ends, _, _ = env.step(action)
    assert ends.tolist() == [False, True, True]
    action[1:] = np.nan
    _, rewards, ends, _, _ = env.step(action)
    assert rewards[1:].tolist() == [0.0, 0.0]
    assert ends.tolist() == [True, False, False]
    with pytest.raises(MixgymError, match=r"action\[1, 0\] is NaN"):
        env.step(action)


# what is refused, by name


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_unknown_reset_options_are_refused(name: str) -> None:
    with pytest.raises(MixgymError, match="unknown option 'nonsense': a single environment"):
        gym.make(name).reset(options={"nonsense": 1})
    with pytest.raises(MixgymError, match="unknown option 'reset_mask'"):
        gym.make(name).reset(options={"reset_mask": np.ones(1, bool)})
    env = batch(name)
    with pytest.raises(MixgymError, match="'resetmask': did you mean reset_mask"):
        env.reset(options={"resetmask": np.ones(3, bool)})
    with pytest.raises(MixgymError, match="unknown option 'nonsense'"):
        env.reset(options={"reset_mask": np.ones(3, bool), "nonsense": None})
    gym.make(name).reset(options={})
    env.reset(options={})
    env.reset(options={"reset_mask": np.ones(3, bool)})


def test_the_batch_of_stable_baselines_takes_no_options() -> None:
    env = CurvesVecEnv(2, decisions=2)
    for options in ({"nonsense": 1}, [{}, {"nonsense": 1}]):
        with pytest.raises(MixgymError, match="unknown option 'nonsense'"):
            env.set_options(options)  # type: ignore[arg-type]
    env.set_options({})


@pytest.mark.parametrize(
    "mask",
    [[True, False], np.zeros(3, bool), np.ones(3), np.ones((3, 1), bool), [1, 0, 0], True],
)
def test_a_wrong_mask_is_refused(mask: Any) -> None:
    env = batch(**DRAWN)
    env.reset(seed=0)
    with pytest.raises(MixgymError, match=r"reset_mask.*give bool\[3\]"):
        env.reset(options={"reset_mask": mask})


def test_the_first_reset_is_of_all_and_comes_before_steps() -> None:
    env = batch(**DRAWN)
    with pytest.raises(MixgymError, match="call reset"):
        env.step(np.zeros(env.action_space.shape, np.float32))
    with pytest.raises(MixgymError, match="the first reset is of all"):
        env.reset(options={"reset_mask": np.array([True, False, False])})


def test_seeds_are_one_for_each_environment_and_none_goes_on() -> None:
    env = batch(**DRAWN)
    with pytest.raises(MixgymError, match="2 seeds for 3 environments"):
        env.reset(seed=[1, 2])
    with pytest.raises(MixgymError, match=r"seed=1.5\): give a whole number, or one for each"):
        env.reset(seed=1.5)  # type: ignore[arg-type]
    one, _ = env.reset(seed=np.int64(4))
    assert np.array_equal(env.reset(seed=[4, 5, 6])[0], one)
    second, _ = env.reset()
    env.reset(seed=4)
    mixed, _ = env.reset(seed=[4, None, None])
    assert np.array_equal(mixed[0], one[0])
    assert np.array_equal(mixed[1:], second[1:]), "their streams went on"


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="autoreset_mode='sometimes': choose one of NextStep"):
        batch(autoreset_mode="sometimes")


# wrappers of Gymnasium


def through(env: Any, steps: int = 9) -> list[Any]:
    """A rollout that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=3)
        env.action_space.seed(0)
        return [env.step(env.action_space.sample()) for _ in range(steps)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BATCHES)
def test_wrappers_of_batches_do_as_around_single_environments(
    name: str, mode: AutoresetMode
) -> None:
    vector, one = wrappers.vector, np.float32(1)
    kinds: list[Callable[[Any], Any]] = [
        vector.RecordEpisodeStatistics,
        vector.NormalizeReward,
        lambda env: vector.ClipReward(env, -0.01, 0.01),
        lambda env: vector.RescaleAction(env, -2 * one, 2 * one),
    ]
    if mode is AutoresetMode.NEXT_STEP:  # Gymnasium's wrappers of observations ask for it
        kinds += [
            vector.NormalizeObservation,
            lambda env: vector.RescaleObservation(env, 0 * one, one),
        ]
    for wrap in kinds:
        ours = through(wrap(batch(name, autoreset_mode=mode, **DRAWN)))
        theirs = through(wrap(sync(name, mode, **DRAWN)))
        for mine, own in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine[0], own[0], atol=1e-4)
            np.testing.assert_allclose(mine[1], own[1], atol=1e-6)
            assert mine[2].tolist() == own[2].tolist()
            assert ("episode" in mine[4]) == ("episode" in own[4])
            if "episode" in own[4]:
                np.testing.assert_allclose(mine[4]["episode"]["r"], own[4]["episode"]["r"])
                assert mine[4]["episode"]["l"].tolist() == own[4]["episode"]["l"].tolist()


def test_a_dict_is_flattened_as_around_single_environments() -> None:
    options, flatten = drawn(observation="dict"), wrappers.vector.FlattenObservation
    ours = through(flatten(batch(autoreset_mode="NextStep", **options)))
    theirs = through(flatten(sync(ID, AutoresetMode.NEXT_STEP, **options)))
    for mine, own in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[0], own[0], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_infos_become_a_list(mode: AutoresetMode) -> None:
    wrap = wrappers.vector.DictInfoToList
    env = wrap(batch(autoreset_mode=mode, **DRAWN))
    _, first = env.reset(seed=3)
    assert [sorted(info) for info in first] == [["start"]] * 3
    theirs = through(wrap(sync(ID, mode, **DRAWN)))
    for mine, own in zip(through(env), theirs, strict=True):
        for info, expected in zip(mine[4], own[4], strict=True):
            assert info.keys() == expected.keys()
            if "decision" in expected:
                assert info["decision"]["decision"] == expected["decision"]["decision"]
            if "start" in expected:
                assert info["start"] == pytest.approx(expected["start"])
            if "final_info" in expected:
                assert info["final_info"]["decision"]["decision"] == 4


def test_statistics_of_wrappers_heed_the_mask() -> None:
    env = wrappers.vector.RecordEpisodeStatistics(batch(autoreset_mode="NextStep", **DRAWN))
    env.reset(seed=3)
    zero = np.zeros(env.action_space.shape, np.float32)
    env.step(zero)
    env.reset(options={"reset_mask": np.array([False, False, True])})
    for _ in range(3):
        _, _, ends, _, infos = env.step(zero)
    assert ends.tolist() == [True, True, False]
    assert infos["episode"]["l"].tolist() == [4, 4, 0]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_batch_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="num_envs=0: give at least 1"):
        batch(name, 0)
