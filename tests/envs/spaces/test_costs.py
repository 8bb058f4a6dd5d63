"""What sources cost, in the observations of every level, and in what agents read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.vec_env import DummyVecEnv

import mixgym  # noqa: F401 - registers the environments
from mixgym.agents.policies.composed import load_agent
from mixgym.agents.policies.export import ExportedPolicy, export_policy, read_card
from mixgym.agents.policies.heads import ActorSpec
from mixgym.agents.policies.plain import plain_spec
from mixgym.agents.policies.rows import rows_shape, split_rows
from mixgym.envs.build import build_environment
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.levels.batch_local import local_rows, present_rows
from mixgym.envs.options import EnvironmentOptions, WorldOptions
from mixgym.envs.probes import TOKEN_SECONDS, TOKEN_SECONDS_STRATA
from mixgym.envs.spaces.observations import (
    COST_BOUND,
    flat_space,
    layout,
    local_observation,
    local_size,
    local_space,
    observes_costs,
    shape_of,
)
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.training.algorithms import make_algorithm

SHAPE = (4, 3)


def environment(*names: str, **options: Any) -> MixtureEnv:
    """A tiny language model on two sources, padded to four."""
    chosen = names or ("addition", "sorting")
    return build_environment(
        WorldOptions.model_validate(
            {
                "sources": {name: {"embedded": name, "rows": 60} for name in chosen},
                "data": {"strata": 2, "max_length": 64},
                "training": {"steps": 2, "interval": 1, "packs": 1},
                "environment": {"max_sources": 4, "max_strata": 3, "costs": True} | options,
            }
        )
    )


def costs_of(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    part, _ = layout(SHAPE, costs=True)["costs"]
    return flat[..., part][..., :4], flat[..., part][..., 4:].reshape(*flat.shape[:-1], 4, 3)


def test_the_flat_observation_ends_with_costs_and_is_else_the_same() -> None:
    with_costs, without = environment(), environment(costs=False)
    seen, plain = with_costs.reset(seed=0)[0], without.reset(seed=0)[0]
    assert with_costs.observation_space.contains(seen)
    assert (seen[: len(plain)] == plain).all()
    top, cells = costs_of(seen)
    wanted = with_costs.world.constants
    assert top[:2] == pytest.approx(wanted[TOKEN_SECONDS], rel=1e-6)
    assert cells[:2, :2] == pytest.approx(wanted[TOKEN_SECONDS_STRATA], rel=1e-6)
    assert not top[2:].any()  # padded sources and strata are zero
    assert not cells[2:].any()
    assert not cells[..., 2].any()
    assert top[0] * top[1] < 0  # one above the mean, the other below
    again = with_costs.step(np.zeros(with_costs.action_space.shape, np.float32))[0]
    assert (costs_of(again)[0] == top).all()


def test_renaming_sources_renames_what_they_cost() -> None:
    one = costs_of(environment("addition", "sorting").reset(seed=0)[0])
    two = costs_of(environment("sorting", "addition").reset(seed=0)[0])
    assert one[0][[1, 0]] == pytest.approx(two[0][:2], rel=1e-5)
    assert one[1][[1, 0]] == pytest.approx(two[1][:2], rel=1e-5)


def test_the_dict_has_them_as_a_part() -> None:
    env = environment(observation="dict")
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    assert seen["costs"][:2] == pytest.approx(env.world.constants[TOKEN_SECONDS], rel=1e-6)
    assert "costs" not in environment(observation="dict", costs=False).reset(seed=0)[0]


def test_values_beyond_the_bounds_are_clipped() -> None:
    env = environment()
    constants = {**env.world.constants, TOKEN_SECONDS: np.array([-9.0, np.nan])}
    object.__setattr__(env.world, "constants", constants)
    seen, _ = env.reset(seed=0)
    assert costs_of(seen)[0].tolist() == [-COST_BOUND, 0, 0, 0]
    assert env.observation_space.contains(seen)


def test_spaces_say_that_they_end_with_costs() -> None:
    for shape in [(1, 1), (2, 5), (6, 1), (12, 4)]:
        entries = shape[0] * (1 + shape[1])
        for costs in (False, True):
            space = flat_space(shape, costs)
            assert observes_costs(space) == costs
            assert shape_of(space.shape[0], entries, costs) == shape
            action = gym.spaces.Box(-1, 1, (entries,))
            assert rows_shape(space, action, "joint") == shape
            top = gym.spaces.Box(-1, 1, (shape[0],))
            assert rows_shape(space, top, "global") == shape
            own = local_space(shape[1], costs)
            assert own.shape == (local_size(shape[1], costs),)
            below = gym.spaces.Box(-1, 1, (shape[1],))
            assert rows_shape(own, below, "local") == (1, shape[1])
    assert not observes_costs(gym.spaces.Discrete(3))


@pytest.mark.parametrize("name", ["Mixture", "Global", "Local"])
def test_registered_environments_pass_the_checkers(name: str) -> None:
    env = gym.make(f"mixgym/{name}-v0", environment={"costs": True})
    assert observes_costs(env.observation_space)
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env.unwrapped)


def test_rows_carry_their_costs_or_leave_them_out() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(5, flat_space(SHAPE, True).shape[0])).astype(np.float32)
    top, cells = costs_of(flat)
    rows = split_rows(torch.from_numpy(flat), *SHAPE, costs=True)
    assert (rows.sources[..., -1].numpy() == top).all()
    assert (rows.strata[..., -1].numpy() == cells).all()
    plain = split_rows(torch.from_numpy(flat), *SHAPE)
    assert plain.sources.shape == (5, 4, 9)
    assert torch.equal(plain.sources, rows.sources[..., :-1])
    own = local_observation(flat, SHAPE).reshape(20, -1)
    local = split_rows(torch.from_numpy(own), 1, 3, "local", costs=True)
    assert (local.sources[:, 0, -1].numpy() == top.ravel()).all()
    assert (local.strata[:, 0, :, -1].numpy() == cells.reshape(20, 3)).all()
    short = torch.from_numpy(flat[:, : flat_space(SHAPE).shape[0]])
    with pytest.raises(ValueError, match=r"environment\.costs=true"):
        split_rows(short, *SHAPE, costs=True)


def test_masks_of_local_rows_are_found_before_the_costs() -> None:
    options = EnvironmentOptions(learner="curves", costs=True)
    joint = CurvesVecEnv(2, options=options, seed=1)
    rows = local_rows(joint)
    seen = rows.reset()
    assert rows.observation_space.contains(seen[0])
    without = options.model_copy(update={"costs": False})
    plain = local_rows(CurvesVecEnv(2, options=without, seed=1)).reset()
    strata = rows.shape[1]
    assert (present_rows(seen, strata) == present_rows(plain, strata)).all()


ALGORITHMS = ["ppo", "recurrent_ppo", "sac", "td3", "tqc", "crossq", "dqn", "qrdqn", "ars"]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_family_reads_costs_and_its_export_too(algo: str, tmp_path: Path) -> None:
    action = {"dqn": "nudge", "qrdqn": "nudge"}.get(algo, "logits")
    env = DummyVecEnv([lambda: environment(action=action)])
    made: Any = make_algorithm(RunConfig.model_validate({"train": {"algo": algo}}), env)
    assert made.policy.spec.costs
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    seen = env.reset()
    dear = seen.copy()
    dear[:, -SHAPE[0] * (1 + SHAPE[1])] += 3.0  # the first source
    acted = [scores_of(made, flat) for flat in (seen, dear)]
    assert not torch.allclose(*acted)
    export_policy(made.policy, tmp_path, {"action": action, "reach": 0.9, "floor": 0.02})
    assert read_card(tmp_path)["costs"] is True
    agent = ExportedPolicy(tmp_path, env)
    assert agent.predict(seen)[0].shape == made.predict(seen, deterministic=True)[0].shape
    assert np.allclose(agent.predict(dear)[0], made.predict(dear, deterministic=True)[0], atol=1e-6)
    assert find_agent_environment(tmp_path)["costs"] is True
    with pytest.raises(ConfigError, match=r"does not observe; set environment\.costs=true"):
        load_agent(tmp_path, DummyVecEnv([lambda: environment(action=action, costs=False)]))


@pytest.mark.parametrize("policy", [{}, {"kind": "mlp"}])
def test_an_agent_starts_blind_to_costs_and_learns_to_read_them(policy: dict[str, str]) -> None:
    plain = {"head": "gaussian", "shape": SHAPE, **policy}
    spec = plain_spec(plain) if policy else ActorSpec("gaussian")
    net = replace(spec, costs=True).build()
    rng = torch.Generator().manual_seed(0)
    flat = torch.randn((3, flat_space(SHAPE, True).shape[0]), generator=rng)
    other = flat.clone()
    other[:, -SHAPE[0] * (1 + SHAPE[1]) :] = 0.0
    one, two = (net.rows(split_rows(seen, *SHAPE, costs=True)) for seen in (flat, other))
    assert torch.equal(one, two)
    one.square().sum().backward()
    layers = [net.rows.encoder.source, net.rows.encoder.stratum] if not policy else [net.rows.top]
    for layer in layers:
        column = (layer[0].weight == 0).all(0)
        assert column.sum() in (1, 2)
        assert layer[0].weight.grad[:, column].abs().sum() > 0


def scores_of(made: Any, flat: np.ndarray) -> torch.Tensor:
    """What the acting network makes of an observation."""
    policy = made.policy
    net = policy
    for name in policy.acting.rstrip(".").split("."):
        net = getattr(net, name)
    rows = split_rows(torch.from_numpy(flat), *SHAPE, costs=True)
    with torch.no_grad():
        return torch.as_tensor(net.rows(rows))


def find_agent_environment(folder: Path) -> dict[str, Any]:
    config = RunConfig.model_validate({"agent": {"name": str(folder)}})
    return find_agent(config.agent).requires.settings


def test_agents_trained_without_costs_go_on_as_before(tmp_path: Path) -> None:
    plain = DummyVecEnv([lambda: environment(costs=False)])
    made: Any = make_algorithm(RunConfig.model_validate({"train": {"algo": "ppo"}}), plain)
    export_policy(made.policy, tmp_path, {"action": "logits"})
    assert "costs" not in find_agent_environment(tmp_path)
    rich = DummyVecEnv([environment])
    seen = rich.reset()
    one = ExportedPolicy(tmp_path, rich).predict(seen)[0]
    two = ExportedPolicy(tmp_path, plain).predict(plain.reset())[0]
    assert (one == two).all()
