"""HBO as an agent: the face, its memory, schedules, ablations, and what it asks for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mixgym.agents.hbo.agent import Hbo, closed_form, paper, released
from mixgym.agents.hbo.settings import needs, read_options
from mixgym.agents.hbo.variants import PRESETS
from mixgym.agents.registry import find_algorithm
from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.observations import parts_of
from mixgym.envs.spaces.signals import SIGNALS

SMALL: dict[str, Any] = {"global": {"hidden": 4}, "local": {"hidden": 4}}


def world(
    options: dict[str, Any],
    *,
    sources: int = 4,
    strata: int = 3,
    count: int = 3,
    decisions: int = 8,
) -> CurvesVecEnv:
    asked = needs(options)
    return CurvesVecEnv(
        count,
        [sample_task(seed, sources=sources, strata=strata) for seed in range(count)],
        EnvironmentOptions(
            learner="curves",
            action=asked.action,
            observation=asked.observation,
            probes=asked.probes,
            probe_at_start=asked.probe_at_start,
            max_sources=sources + 1,
            max_strata=strata + 1,
        ),
        decisions=decisions,
        in_order=True,
    )


def drive(agent: Hbo, env: CurvesVecEnv, decisions: int = 6) -> NDArray[Any]:
    """Actions of all environments, float[decisions, n, entries]."""
    observation, state = env.reset(), None
    start = np.ones(env.num_envs, np.bool_)
    actions = []
    for _ in range(decisions):
        action, state = agent.predict(observation, state, start)
        actions.append(action)
        observation, _, start, _ = env.step(action)
    return np.array(actions)


def normalised(actions: NDArray[Any], env: CurvesVecEnv) -> tuple[FloatArray, FloatArray]:
    """Weights of sources and of strata from actions."""
    most, groups = env.core.shape
    top = actions[..., :most]
    inner = actions[..., most:].reshape(*actions.shape[:-1], most, groups)
    inner = inner / np.maximum(inner.sum(-1, keepdims=True), 1e-12)
    return top / top.sum(-1, keepdims=True), inner


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_drives_an_episode(preset: str) -> None:
    options: dict[str, Any] = {"preset": preset}
    env = world(options)
    actions = drive(Hbo(env, **options), env)
    assert env.action_space.contains(actions[-1, 0])
    top, inner = normalised(actions, env)
    assert np.isfinite(top).all()
    assert (top[..., -1] == 0).all()  # a source that is not there
    assert (inner[..., -1] == 0).all()
    assert (top[-1] != top[0]).any()


def test_presets_by_name() -> None:
    assert Hbo().settings.preset == "recommended"
    assert [f().settings.preset for f in (released, paper, closed_form)] == [
        "released",
        "paper",
        "closed_form",
    ]
    for name in ("hbo", "hbo_released", "hbo_paper", "closed_form"):
        algorithm = find_algorithm(name)
        agent = algorithm.load()(None, names=("a",))
        assert algorithm.needs({}).probes == agent.settings.probes()
    assert read_options({"preset": "paper"}).update_at_start
    assert not read_options({"preset": "released"}).update_at_start


def test_closed_form_is_the_share_of_rewards() -> None:
    options: dict[str, Any] = {"preset": "closed_form"}
    env = world(options, decisions=4)
    agent = Hbo(env, **options)
    observation, state = env.reset(), None
    for _ in range(2):
        action, state = agent.predict(observation, state)
        observation = env.step(action)[0]
    action, _ = agent.predict(observation, state)
    norm = observation["probe/gradient_norm"]
    top, inner = normalised(action, env)
    np.testing.assert_allclose(top, norm / norm.sum(-1, keepdims=True), rtol=1e-5)
    ratio = observation["probe/perplexity_ratio"].reshape(inner.shape)
    share = ratio / np.maximum(ratio.sum(-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(inner, share, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("levels", ["both", "global", "local", "none"])
def test_ablation_by_one_flag(levels: str) -> None:
    options: dict[str, Any] = {"levels": levels}
    env = world(options)
    top, inner = normalised(drive(Hbo(env, **options), env), env)
    assert (top[-1] != top[0]).any() == (levels in ("both", "global"))
    assert (inner[-1] != inner[0]).any() == (levels in ("both", "local"))
    probes = set(needs(options).probes)
    expected = {"gradient_norm_last"} if levels in ("both", "global") else set()
    assert probes == expected


@pytest.mark.parametrize("strata", [1, 2, 4, 8])
def test_any_number_of_strata(strata: int) -> None:
    for actor in ("table", "mlp", "equivariant"):
        options: dict[str, Any] = {
            "global": {"actor": actor, "hidden": 4, "reward": "gradient_norm"},
            "local": {
                "actor": actor,
                "hidden": 4,
                "reward": "perplexity_ratio",
                "shared": actor == "equivariant",
            },
        }
        env = world(options, strata=strata)
        _, inner = normalised(drive(Hbo(env, **options), env, 3), env)
        np.testing.assert_allclose(inner[-1, :, :4].sum(-1), 1, atol=1e-6)


def changes(options: dict[str, Any], decisions: int) -> tuple[list[int], list[int]]:
    """Decisions at which either level's weights differ from those before."""
    env = world(options, decisions=decisions)
    top, inner = normalised(drive(Hbo(env, **options), env, decisions), env)
    start = parts_of(env.reset())
    prior = start["signals"][..., SIGNALS.index("size")]
    top = np.concatenate([(prior / prior.sum(-1, keepdims=True))[None], top])
    moved = [i for i in range(decisions) if np.abs(top[i + 1] - top[i]).max() > 1e-5]
    inside = [i for i in range(1, decisions) if np.abs(inner[i] - inner[i - 1]).max() > 1e-6]
    return moved, inside


def test_levels_have_periods_of_their_own() -> None:
    options = {
        "preset": "closed_form",
        "global": {"period": 3},
        "local": {"period": 2, "reward": "loss"},
    }
    assert needs(options).probes == {"gradient_norm": 3, "loss": 2}
    assert changes(options, 8) == ([3, 6], [2, 4, 6])


def test_an_update_at_the_start_if_it_is_asked_for() -> None:
    options = {"preset": "closed_form", "global": {"period": 4}, "update_at_start": True}
    assert needs(options).probe_at_start
    assert changes(options, 8)[0] == [0, 4]
    assert changes({**options, "update_at_start": False}, 8)[0] == [4]


def test_the_period_is_kept_where_others_probe_more_often() -> None:
    options: dict[str, Any] = {"preset": "closed_form", "levels": "global", "global": {"period": 4}}
    env = world({**options, "global": {"period": 1}})
    top, _ = normalised(drive(Hbo(env, **options), env, 6), env)
    moved = [i for i in range(1, 6) if (top[i] != top[i - 1]).any()]
    assert moved == [4]


ACTORS: dict[str, dict[str, Any]] = {
    "table": {},
    "mlp": {"global": {"actor": "mlp"}, "local": {"actor": "mlp"}},
    "shared": {"local": {"actor": "mlp", "shared": True}},
    "equivariant": {
        "global": {"actor": "equivariant", "hidden": 4},
        "local": {"actor": "equivariant", "hidden": 4, "shared": True},
    },
    "sampled": {
        "global": {"update": "sampled", "optimizer": "adam"},
        "local": {"update": "sampled_importance_weighted"},
    },
}


@pytest.mark.parametrize("name", ACTORS)
def test_memory_goes_on_to_the_same_bits(name: str) -> None:
    options = ACTORS[name]
    whole = drive(Hbo(**options), world(options), 6)
    env = world(options)
    observation, state = env.reset(), None
    agent = Hbo(env, **options)
    for step in range(6):
        if step == 3:
            agent._state = state
            memory = agent.memory()
            agent = Hbo(env, **options)
            agent.set_memory(memory)
            state = agent._state
        action, state = agent.predict(observation, state)
        np.testing.assert_array_equal(action, whole[step])
        observation = env.step(action)[0]


@pytest.mark.parametrize("name", [name for name in ACTORS if name != "sampled"])
def test_environments_are_independent(name: str) -> None:
    options = ACTORS[name]
    env = world(options)
    agent = Hbo(env, **options)
    observation, state = env.reset(), None
    alone: list[Any] = [None] * 3
    for _ in range(4):
        action, state = agent.predict(observation, state)
        for i in range(3):
            own = {key: values[i] for key, values in observation.items()}
            one, alone[i] = agent.predict(own, alone[i])
            np.testing.assert_allclose(one, action[i], atol=1e-5)
        observation = env.step(action)[0]


def test_predict_leaves_the_state_as_it_was_and_forgets_at_an_episodes_start() -> None:
    env = world({})
    agent = Hbo(env)
    observation, state = env.reset(), None
    for _ in range(3):
        action, state = agent.predict(observation, state)
        observation = env.step(action)[0]
    assert state is not None
    kept = [array.copy() for array in state]
    first, _ = agent.predict(observation, None)
    again, fresh = agent.predict(observation, state, np.array([True, False, True]))
    for before, after in zip(kept, state, strict=True):
        np.testing.assert_array_equal(before, after)
    assert fresh is not None
    np.testing.assert_array_equal(fresh[0], [1, 4, 1])
    np.testing.assert_array_equal(again[0], first[0])


def test_saved_and_loaded(tmp_path: Path) -> None:
    options = {"global": {"actor": "mlp", "tau": float("inf")}, "seed": 3}
    agent = Hbo(world(options), ("a", "b"), **options)
    agent.learn(12)
    agent.save(tmp_path / "agent.json")
    again = Hbo.load(tmp_path / "agent.json", world(options))
    assert again.settings == agent.settings
    assert again.names == ("a", "b")
    assert agent._state is not None
    assert again._state is not None
    for mine, theirs in zip(agent._state, again._state, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    (tmp_path / "rule.json").write_text('{"rule": "Uniform"}')
    with pytest.raises(ValueError, match="holds no HBO agent"):
        Hbo.load(tmp_path / "rule.json")


def test_reports_say_what_moved_the_actors() -> None:
    env = world({})
    agent = Hbo(env)
    drive(agent, env, 3)
    names = tuple(f"source{k}" for k in range(4))
    said = agent.report(1, names)
    assert list(said) == ["reward_sources", "change_sources", "reward_strata", "change_strata"]
    assert list(said["reward_sources"]) == list(names)
    assert len(said["change_strata"]["source0"]) == 4
    assert said["change_strata"]["source0"][3] is None  # no such stratum
    infos: list[dict[str, Any]] = [{"decision": {"mixture": dict.fromkeys(names, 0.25)}}, {}, {}]
    agent._annotate(infos)
    assert infos[0]["decision"]["actor"] == agent.report(0, names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "best"}, "agent.options.preset=best: choose one of recommended"),
        ({"globl": {}}, "globl: HBO has no such option; did you mean global?"),
        ({"global": {"flor": 1}}, "agent.options.global.flor: .* did you mean floor?"),
        ({"global": {"learning_rate": -1}}, r"agent.options.global.learning_rate=-1: .*greater"),
        ({"global": {"reward": "loss"}}, "agent.options.global.reward=loss: choose one of grad"),
        ({"local": {"reward": "gradient_norm"}}, "agent.options.local.reward=gradient_norm"),
        ({"local": {"actor": "equivariant"}}, "set local.shared=true"),
        ({"levels": "all"}, "agent.options.levels='all'"),
    ],
)
def test_options_that_will_not_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Hbo(**options)
    with pytest.raises(ConfigError, match=words):
        needs(options)


def test_a_probe_that_is_missing_is_named() -> None:
    env = world({"levels": "none"})
    with pytest.raises(ConfigError, match=r"set environment\.probes\.gradient_norm_last=1"):
        Hbo(env).predict(env.reset())


def test_a_reference_is_asked_for_where_a_probe_needs_it() -> None:
    assert needs({"local": {"reward": "excess_loss"}}).reference
    assert not needs({}).reference
