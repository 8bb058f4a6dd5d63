"""Every trained algorithm by one word: made, trained, saved, resumed bit-equal, exported, moved."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from mixgym.agents.algorithm_presets import PRESETS
from mixgym.agents.policies.export import (
    CARD,
    ExportedPolicy,
    acting_weights,
    export_policy,
    load_weights,
)
from mixgym.agents.registry import ALGORITHMS
from mixgym.envs.curves.tasks import sets
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.levels.batch_global import GlobalLevel
from mixgym.envs.levels.batch_local import local_rows
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.plugins.outside import load_object
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.spaces.actions import ACTIONS
from mixgym.envs.spaces.observations import local_observation
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.training.algorithms import (
    OWN,
    load_algorithm,
    log_interval,
    make_algorithm,
    save_algorithm,
    training_needs,
)
from mixgym.trainer.training.global_random_state import global_streams, set_global_streams
from mixgym.trainer.training.training_envs import FastTrainingEnv

DECISIONS = 4
SMALL: dict[str, Any] = {
    "on_policy": {"n_steps": DECISIONS},
    "off_policy": {
        "buffer_size": 64,
        "learning_starts": 8,
        "batch_size": 8,
        "train_freq": DECISIONS,
        "gradient_steps": 2,
    },
    "search": {"n_delta": 2, "n_top": 1, "n_eval_episodes": 1},
}
MORE: dict[str, Any] = {
    "ppo": {"batch_size": 8, "n_epochs": 1},
    "a2c": {"learning_rate": {"start": 0.01, "end": 0.0}},
    "sac": {"learning_rate": {"start": 0.01, "end": 0.001}},
    "ars": {"delta_std": {"start": 0.5, "end": 0.01}},
    "trpo": {"batch_size": 8, "n_critic_updates": 1, "cg_max_steps": 2, "sub_sampling_factor": 1},
    "recurrent_ppo": {"batch_size": 8, "n_epochs": 1},
    "dqn": {"target_update_interval": 8},
    "qrdqn": {"target_update_interval": 8},
}


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sets.TASK_SETS, "world-train", sets.TASK_SETS["world-train"][:8])


def suited(config: RunConfig) -> RunConfig:
    """The configuration with the environment that its algorithm is trained in."""
    return environment_for(training_needs(config), config)


def small(algo: str, **train: Any) -> RunConfig:
    """A configuration in which a rollout is four decisions in two environments."""
    preset = PRESETS[algo]
    policy = {} if algo == "ars" else {"width": 8}
    if "n_quantiles" in preset.policy_options:
        policy["n_quantiles"] = 5
    options = {**SMALL[preset.family], **MORE.get(algo, {}), **train.pop("options", {})}
    train = {"algo": algo, "environments": 2, "options": options, "policy": policy, **train}
    return suited(RunConfig.model_validate({"train": train, "seed": 3}))


class Saver(BaseCallback):
    """Saves everything at the start of one rollout."""

    def __init__(self, world: FastTrainingEnv, folder: Path, number: int) -> None:
        super().__init__()
        self.world, self.folder, self.left = world, folder, number

    def _on_step(self) -> bool:
        assert len(self.locals["rewards"]) == len(self.locals["infos"]) == 2
        return True

    def _on_rollout_start(self) -> None:
        self.left -= 1
        if self.left == 0:
            save_algorithm(self.model, self.folder)
            (self.folder / "world").mkdir()
            self.world.save(self.folder / "world")
            (self.folder / "streams.all").write_text(json.dumps(global_streams()))


def trained(algo: str, folder: Path, decisions: int) -> Any:
    config = small(algo)
    world = FastTrainingEnv(config)
    algorithm = make_algorithm(config, world.env)
    saver = Saver(world, folder, 4)
    algorithm.learn(decisions, callback=saver, log_interval=log_interval(algorithm))
    assert saver.left <= 0
    return algorithm


@pytest.mark.parametrize("algo", PRESETS)
def test_saved_and_loaded_training_goes_on_bit_equal(algo: str, tmp_path: Path) -> None:
    decisions = 1200 if algo == "ars" else 48
    whole = trained(algo, tmp_path, decisions)
    config = small(algo)
    world = FastTrainingEnv(config)
    resumed: Any = load_algorithm(tmp_path, world.env, config)
    world.load(tmp_path / "world")
    set_global_streams(json.loads((tmp_path / "streams.all").read_text()))
    assert 0 < resumed.num_timesteps < decisions
    interval = log_interval(resumed)
    resumed.learn(decisions - resumed.num_timesteps, None, interval, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    old, new = whole.policy.state_dict(), resumed.policy.state_dict()
    assert [*old] == [*new]
    different = [name for name in old if not torch.equal(old[name], new[name])]
    assert different == []
    buffer = getattr(whole, "replay_buffer", None)
    if buffer is not None:
        np.testing.assert_array_equal(buffer.observations, resumed.replay_buffer.observations)
        np.testing.assert_array_equal(buffer.actions, resumed.replay_buffer.actions)


@pytest.mark.parametrize("algo", PRESETS)
def test_training_moves_the_actor_and_its_export_drives_another_number_of_sources(
    algo: str, tmp_path: Path
) -> None:
    config = small(algo)
    world = FastTrainingEnv(config)
    algorithm: Any = make_algorithm(config, world.env)
    export_policy(algorithm.policy, tmp_path / "twin", {})
    algorithm.learn(600 if algo == "ars" else 48)
    export_policy(algorithm.policy, tmp_path / "agent", {"action": config.environment.action})
    before, after = (acting_weights(tmp_path / name) for name in ("twin", "agent"))
    assert before
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved, "the acting network has changed"
    files = sorted(path.name for path in (tmp_path / "agent").iterdir())
    assert files == [CARD, "policy.safetensors"]
    # the same actions as the algorithm's own
    observation = np.asarray(world.env.reset())
    agent = ExportedPolicy(tmp_path / "agent", world.env)
    mine, _ = agent.predict(observation, None, np.ones(2, bool))
    own, _ = algorithm.predict(
        observation, **({"episode_start": np.ones(2, bool)} if agent.spec.memory else {}),
        deterministic=True,
    )  # fmt: skip
    np.testing.assert_allclose(mine, own, atol=1e-5)
    # another number of sources and strata, in the environment of one run
    options = {"action": agent.card["action"], "max_sources": 6, "max_strata": 5}
    env = make_mixture_env(environment=options, training={"steps": 12, "interval": 3})
    driver = ExportedPolicy(tmp_path / "agent", shape=(6, 5))
    seen, _ = env.reset(seed=0)
    state, done, start = None, False, np.ones(1, bool)
    while not done:
        action, state = driver.predict(seen, state, start)
        assert env.action_space.contains(action)
        seen, _, done, _, info = env.step(action)
        start = np.zeros(1, bool)
    assert sum(info["decision"]["mixture"].values()) == pytest.approx(1.0)
    assert (state is not None) == (agent.spec.memory > 0)
    # a later stage starts from the same weights
    again = make_algorithm(config, world.env)
    load_weights(again.policy, tmp_path / "agent")
    export_policy(again.policy, tmp_path / "again", {})
    for name, value in acting_weights(tmp_path / "again").items():
        assert torch.equal(value, after[name])


@pytest.mark.parametrize("algo", ["ppo", "recurrent_ppo", "sac", "td3", "ars"])
@pytest.mark.parametrize("level", ["global", "local"])
def test_a_part_leaves_the_other_level_at_the_prior(algo: str, level: Any, tmp_path: Path) -> None:
    options = EnvironmentOptions(learner="curves", max_sources=5, max_strata=3)
    tasks = [sample_task(seed, sources=3 + seed % 2, strata=2) for seed in range(4)]
    joint = CurvesVecEnv(2, tasks, options, seed=1)
    sources, strata = 5, 3
    env: Any = local_rows(joint) if level == "local" else GlobalLevel(joint)
    algorithm: Any = make_algorithm(small(algo), env, level=level)
    with torch.no_grad():
        for value in algorithm.policy.parameters():
            value.add_(0.05 * torch.randn(value.shape))
    export_policy(algorithm.policy, tmp_path, {})
    agent = ExportedPolicy(tmp_path, joint)
    joint_view = np.asarray(joint.reset())
    rows = joint_view
    if level == "local":
        rows = local_observation(joint_view, (sources, strata)).reshape(2 * sources, -1)
    start = {"episode_start": np.ones(len(rows), bool)} if agent.spec.memory else {}
    own, _ = algorithm.predict(rows, deterministic=True, **start)
    action, state = agent.predict(joint_view, None, np.ones(2, bool))
    assert action.shape == (2, sources * (1 + strata))
    parts = {"global": action[:, :sources], "local": action[:, sources:]}
    assert np.abs(parts[level]).max() > 0
    np.testing.assert_allclose(parts.pop(level).reshape(own.shape), own, atol=1e-5)
    assert not next(iter(parts.values())).any()
    # a memory per row, cleared by environments
    if agent.spec.memory:
        assert state is not None
        assert len(state[0]) == len(rows)
        again, _ = agent.predict(joint_view, state, np.array([True, False]))
        np.testing.assert_allclose(again[0], action[0], atol=1e-6)
        assert np.abs(again[1] - action[1]).max() > 0


def test_a_dirichlet_head_acts_by_weights_and_is_moved(tmp_path: Path) -> None:
    config = small("ppo", policy={"width": 8, "head": "dirichlet"})
    assert config.environment.action == "weights"
    world = FastTrainingEnv(config)
    algorithm: Any = make_algorithm(config, world.env)
    algorithm.learn(32)
    export_policy(algorithm.policy, tmp_path, {})
    agent = ExportedPolicy(tmp_path, shape=(3, 2))
    options = EnvironmentOptions(learner="curves", action="weights", max_sources=3, max_strata=2)
    tasks = [sample_task(0, sources=3, strata=2)]
    env = CurvesVecEnv(1, tasks, options)
    for deterministic in (True, False):
        action, _ = agent.predict(np.asarray(env.reset()), deterministic=deterministic)
        assert action[0, :3].sum() == pytest.approx(1.0, abs=1e-5)
        assert action[0, 3:].reshape(3, 2).sum(-1) == pytest.approx(np.ones(3), abs=1e-5)
    save_algorithm(algorithm, tmp_path)
    again: Any = load_algorithm(tmp_path, world.env, config)
    assert torch.equal(
        again.policy.actor_net.log_concentration, algorithm.policy.actor_net.log_concentration
    )


def test_trpo_takes_the_dirichlet_head(tmp_path: Path) -> None:
    config = small("trpo", policy={"width": 8, "head": "dirichlet"})
    algorithm: Any = make_algorithm(config, FastTrainingEnv(config).env)
    before = algorithm.policy.actor_net.log_concentration.detach().clone()
    algorithm.learn(32)
    assert not torch.equal(before, algorithm.policy.actor_net.log_concentration)


# --- presets and options --------------------------------------------------------------------------


def test_every_trained_algorithm_has_a_preset_and_a_registry_line() -> None:
    listed = {name for name, entry in ALGORITHMS.items() if entry.is_trained}
    assert listed == set(PRESETS) - {"hbo"}, "HBO can also decide without training"
    assert set(PRESETS) <= set(ALGORITHMS)


@pytest.mark.parametrize("algo", PRESETS)
def test_presets_name_options_that_exist_and_say_where_they_come_from(algo: str) -> None:
    preset = PRESETS[algo]
    known = set(inspect.signature(load_object(preset.algorithm)).parameters) - set(OWN)
    assert set(preset.options) | set(preset.language) <= known
    assert preset.environment["action"] in ACTIONS
    assert set(preset.environment) <= set(EnvironmentOptions.model_fields)
    assert preset.provenance
    texts = {"ent_coef", "replay_buffer_class"}
    for name, value in {**preset.options, **preset.policy_options}.items():
        parts = value.values() if isinstance(value, dict) and "start" in value else [value]
        read = not any(isinstance(part, str) for part in parts)
        assert name in texts or read, f"{name}: YAML read it as text"
    needs = training_needs(RunConfig.model_validate({"train": {"algo": algo}}))
    assert needs.action == ("nudge" if algo in ("dqn", "qrdqn") else "logits")


def test_without_noise_td3_and_ddpg_would_not_explore() -> None:
    for algo in ("td3", "ddpg"):
        algorithm: Any = make_algorithm(small(algo), FastTrainingEnv(small(algo)).env)
        assert algorithm.action_noise._sigma.min() > 0
        silent = small(algo, options={**SMALL["off_policy"], "action_noise": 0})
        algorithm = make_algorithm(silent, FastTrainingEnv(silent).env)
        assert algorithm.action_noise is None


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"algo": "sac", "options": {"n_stepz": 3}}, r"train\.options\.n_stepz: .*mean n_steps"),
        ({"algo": "ars", "options": {"n_epochs": 3}}, r"train\.options\.n_epochs: ars has no such"),
        ({"algo": "sac", "policy": {"widht": 3}}, r"train\.policy: sac: widht: .* mean width"),
        ({"algo": "ppo", "policy": {"level": "global"}}, r"train\.policy\.level"),
        ({"algo": "dqm"}, r"train\.algo=dqm: .*did you mean dqn"),
        ({"algo": "td3", "options": {"train_freq": [3, "weeks"]}}, r"train\.options.*weeks"),
    ],
)
def test_what_is_unknown_is_named(train: dict[str, Any], words: str) -> None:
    config = RunConfig.model_validate({"train": {"environments": 2, **train}})
    env = FastTrainingEnv(RunConfig.model_validate({"train": {"environments": 2}})).env
    with pytest.raises(ConfigError, match=words):
        make_algorithm(suited(config), env)


def test_the_environment_suits_the_algorithm_unless_told_otherwise() -> None:
    def environment(algo: str, **given: Any) -> EnvironmentOptions:
        data = {"train": {"algo": algo}, "environment": given}
        return suited(RunConfig.model_validate(data)).environment

    assert environment("ppo").action == "logits"
    assert environment("ppo", action="delta").action == "delta"
    assert environment("dqn").action == "nudge"
    assert environment("sac").reach == PRESETS["sac"].environment["reach"]
    assert environment("sac", reach=0.8).reach == 0.8
    assert environment("ppo", observation="dict").observation == "flat"
    with pytest.raises(ConfigError, match=r"environment\.action=logits: dqn acts by nudge"):
        environment("dqn", action="logits")
    with pytest.raises(ConfigError, match="sac acts by logits or delta"):
        environment("sac", action="weights")


def test_curves_are_written_once_per_rollout() -> None:
    for algo, expected in (("ppo", 1), ("sac", 2), ("ars", 1)):
        config = small(algo)
        assert log_interval(make_algorithm(config, FastTrainingEnv(config).env)) == expected


def test_candidates_of_the_search_meet_the_same_episodes() -> None:
    config = small("ars")
    algorithm: Any = make_algorithm(config, FastTrainingEnv(config).env)

    class Silent(BaseCallback):
        def _on_step(self) -> bool:
            return True

    callback = Silent()
    callback.init_callback(algorithm)
    same = torch.zeros(3, algorithm.n_params)
    algorithm._setup_learn(100)
    returns = algorithm.evaluate_candidates(same, callback)
    assert returns.tolist() == [float(returns[0])] * 3
    other = algorithm.evaluate_candidates(same, callback)
    assert float(other[0]) != float(returns[0]), "other updates meet other episodes"


def test_an_option_may_move_while_the_training_goes_on() -> None:
    config = small("a2c")
    algorithm: Any = make_algorithm(config, FastTrainingEnv(config).env)
    rates = [algorithm.lr_schedule(left) for left in (1.0, 0.5, 0.0)]
    assert rates == pytest.approx([0.01, 0.005, 0.0])
    algorithm.learn(32)
    assert algorithm.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
