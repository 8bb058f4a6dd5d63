"""The hierarchical policy: equivariant, masked, trained, exported, moved to other sizes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from mixgym.agents.policies.export import CARD, WEIGHTS, ExportedPolicy, export_policy, load_weights
from mixgym.agents.policies.network import Spread, bounded
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.observations import layout


def vector(
    sources: int = 4, strata: int = 3, count: int = 4, shape: tuple[int, int] | None = None
) -> CurvesVecEnv:
    tasks = [sample_task(s, sources=sources, strata=strata) for s in range(4)]
    most, groups = shape or (sources, strata)
    options = EnvironmentOptions(learner="curves", max_sources=most, max_strata=groups)
    return CurvesVecEnv(count, tasks, options, decisions=8)


def algorithm(env: Any, **options: Any) -> PPO:
    settings = {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "learning_rate": 1e-2}
    return PPO(HierarchicalPolicy, env, device="cpu", **{**settings, **options})


def loud(policy: Any) -> Any:
    """Last layers as large as the others, so that actions differ by more than rounding."""
    with torch.no_grad():
        for head in (policy.actor_net.rows.top, policy.actor_net.rows.inner):
            head[-1].weight.mul_(100)
    return policy


def observations(env: CurvesVecEnv, decisions: int = 3) -> np.ndarray:
    observation = env.reset()
    rng = np.random.default_rng(0)
    for _ in range(decisions):
        entries = (env.action_space.shape or ())[0]
        action = rng.uniform(-1, 1, (env.num_envs, entries)).astype(np.float32)
        observation = env.step(action)[0]
    return np.asarray(observation)


def permuted(flat: np.ndarray, order: Any, shape: tuple[int, int]) -> np.ndarray:
    """The same observations with the sources in another order."""
    out = flat.copy()
    parts = layout(shape)
    for name in ("sources", "strata"):
        part, size = parts[name]
        out[:, part] = flat[:, part].reshape(-1, *size)[:, order].reshape(len(flat), -1)
    masks = flat[:, parts["masks"][0]]
    cells = masks[:, shape[0] :].reshape(-1, *shape)[:, order].reshape(len(flat), -1)
    out[:, parts["masks"][0]] = np.concatenate([masks[:, : shape[0]][:, order], cells], 1)
    return out


def test_permuting_sources_permutes_the_action_and_leaves_the_value() -> None:
    """Strata are not exchangeable: their difficulty rank is a feature, on purpose."""
    env = vector(shape=(5, 4))
    policy = loud(algorithm(env).policy)
    flat = observations(env)
    order = np.random.default_rng(1).permutation(5)
    moved = permuted(flat, order, (5, 4))
    action, _ = policy.predict(flat, deterministic=True)
    other, _ = policy.predict(moved, deterministic=True)
    assert np.abs(action).max() > 0.05
    np.testing.assert_allclose(other[:, :5], action[:, :5][:, order], atol=1e-6)
    cells, others = (a[:, 5:].reshape(-1, 5, 4) for a in (action, other))
    np.testing.assert_allclose(others, cells[:, order], atol=1e-6)
    with torch.no_grad():
        values = [policy.predict_values(torch.from_numpy(o)) for o in (flat, moved)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


@pytest.mark.parametrize("sources", [3, 4, 9])
@pytest.mark.parametrize("strata", [1, 2, 3, 4])
def test_the_same_weights_act_on_any_size(sources: int, strata: int, tmp_path: Path) -> None:
    policy = loud(algorithm(vector(4, 3)).policy)
    export_policy(policy, tmp_path, {})
    env, padded = vector(sources, strata), vector(sources, strata, shape=(11, 5))
    agent, other = ExportedPolicy(tmp_path, env), ExportedPolicy(tmp_path, shape=(11, 5))
    assert env.reset().shape[0] == padded.reset().shape[0] == 4
    one = observations(env)
    action, _ = agent.predict(one)
    assert action.shape == (4, sources * (1 + strata))
    assert np.isfinite(action).all()
    assert np.abs(action).max() <= 1
    # padding changes nothing
    env.seed(5)
    padded.seed(5)
    mine, wide = agent.predict(env.reset())[0], other.predict(padded.reset())[0]
    np.testing.assert_allclose(wide[:, :sources], mine[:, :sources], atol=1e-6)
    cells = wide[:, 11:].reshape(4, 11, 5)
    np.testing.assert_allclose(
        cells[:, :sources, :strata], mine[:, sources:].reshape(4, sources, strata), atol=1e-6
    )
    assert (wide[:, sources:11] == 0).all()
    assert (cells[:, sources:] == 0).all()
    assert (cells[:, :, strata:] == 0).all()
    # the same as the policy of the algorithm for those spaces
    rebuilt = algorithm(env).policy
    load_weights(rebuilt, tmp_path)
    again, _ = rebuilt.predict(env.reset(), deterministic=True)
    assert again.shape == mine.shape


def test_a_trained_action_gives_absent_cells_exactly_nothing() -> None:
    env = vector(3, 2, shape=(6, 4))
    policy = loud(algorithm(env).policy)
    action, _ = policy.predict(env.reset(), deterministic=False)
    cells = action[:, 6:].reshape(-1, 6, 4)
    assert (action[:, 3:6] == 0).all()
    assert (cells[:, 3:] == 0).all()
    assert (cells[:, :, 2:] == 0).all()
    env.step(action)
    last = env.core.last
    assert last is not None
    assert (last.weight[:, 3:] == 0).all()
    assert (last.strata[~last.present] == 0).all()


def test_training_moves_parameters_and_actions_of_both_levels() -> None:
    env = vector()
    model = algorithm(env)
    policy = model.policy
    assert isinstance(policy, HierarchicalPolicy)
    assert policy.log_std.tolist() == [-1.0, -1.0]
    before = {name: value.clone() for name, value in policy.named_parameters()}
    observation = observations(env)
    action, _ = model.predict(observation, deterministic=True)
    model.learn(64)
    after, _ = model.predict(observation, deterministic=True)
    assert (np.abs(after - action)[:, :4].max(), np.abs(after - action)[:, 4:].max()) > (0.01, 0.01)
    still = [name for name, value in policy.named_parameters() if torch.equal(before[name], value)]
    assert still == []


def test_gradients_reach_both_levels() -> None:
    env = vector()
    policy = loud(algorithm(env).policy)
    observation = torch.from_numpy(observations(env))
    actions, _, _ = policy(observation)
    actions = actions.detach()
    parts = ("encoder.stratum", "encoder.source", "encoder.context")
    names = tuple(f"actor_net.rows.{part}" for part in parts)
    for level, head, other in ((slice(0, 4), "top", "inner"), (slice(4, None), "inner", "top")):
        policy.zero_grad()
        policy.get_distribution(observation).distribution.mode[:, level].sum().backward()
        found = gradients(policy)
        assert all(found[f"{name}.0.weight"] > 0 for name in (*names, f"actor_net.rows.{head}"))
        assert found.get(f"actor_net.rows.{other}.0.weight", 0.0) == 0
    policy.zero_grad()
    values, log_prob, entropy = policy.evaluate_actions(observation, actions)
    assert entropy is not None
    (values.sum() + log_prob.sum()).backward()
    assert policy.log_std.grad is not None
    assert (policy.log_std.grad != 0).all()
    assert all(value > 0 for name, value in gradients(policy).items() if "weight" in name)


def gradients(policy: torch.nn.Module) -> dict[str, float]:
    return {
        name: float(value.grad.abs().sum())
        for name, value in policy.named_parameters()
        if value.grad is not None
    }


def test_probabilities_of_masked_entries_do_not_count() -> None:
    env = vector(3, 2, shape=(5, 4))
    policy = loud(algorithm(env).policy)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-0.7, -1.3]))
        observation = torch.from_numpy(observations(env))
        actions, values, log_prob = policy(observation)
        again, evaluated, entropy = policy.evaluate_actions(observation, actions)
        mean = policy.actor_net(policy.rows(observation)).inner.mean
    assert entropy is not None
    assert torch.equal(values, again)
    for i in range(len(actions)):
        density, disorder = 0.0, 0.0
        for j in range(5 + 20):
            source, stratum = (j, 0) if j < 5 else divmod(j - 5, 4)
            if source >= 3 or stratum >= 2:
                assert actions[i, j] == 0
                continue
            std = float(np.exp(-0.7 if j < 5 else -1.3))
            z = (float(actions[i, j]) - float(mean[i, j])) / std
            density += -0.5 * z * z - np.log(std) - 0.5 * np.log(2 * np.pi)
            disorder += 0.5 * np.log(2 * np.pi * np.e) + np.log(std)
        assert float(log_prob[i]) == pytest.approx(density, rel=1e-4)
        assert float(evaluated[i]) == pytest.approx(density, rel=1e-4)
        assert float(entropy[i]) == pytest.approx(disorder, rel=1e-5)


def test_stable_baselines_saves_and_loads(tmp_path: Path) -> None:
    env = vector()
    model = algorithm(env, policy_kwargs={"width": 16, "log_std_init": -0.5}).learn(32)
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert again.policy.width == 16
    observation = observations(env)
    assert (
        model.predict(observation, deterministic=True)[0].tolist()
        == again.predict(observation, deterministic=True)[0].tolist()
    )
    policy = HierarchicalPolicy.load(_saved_policy(model.policy, tmp_path / "policy.pth"))
    assert policy.width == 16


def _saved_policy(policy: Any, path: Path) -> str:
    policy.save(str(path))
    return str(path)


def test_an_export_is_safe_to_share_and_checked(tmp_path: Path) -> None:
    model = algorithm(vector())
    folder = tmp_path / "agent"
    folder.mkdir()
    export_policy(model.policy, folder, {"algorithm": "ppo"})
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    card = json.loads((folder / CARD).read_text())
    assert card["width"] == 64
    assert (folder / WEIGHTS).read_bytes()[8:9] == b"{", "safetensors: a length, then JSON"
    agent = ExportedPolicy(folder, shape=(4, 3))
    observation = observations(vector())
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_allclose(agent.predict(observation)[0], expected, atol=1e-6)
    single, state = agent.predict(observation[0])
    assert single == pytest.approx(expected[0], abs=1e-6)
    assert state is None
    spread = [
        ExportedPolicy(folder, shape=(4, 3), seed=seed).predict(observation, deterministic=False)[0]
        for seed in (0, 0, 1)
    ]
    assert spread[0].tolist() == spread[1].tolist() != spread[2].tolist()
    card["features"]["sources"] = ["target"]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ConfigError, match=r"another observation layout.*train it anew"):
        ExportedPolicy(folder, shape=(4, 3))


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no exported policy"):
        ExportedPolicy(tmp_path, shape=(4, 3))
    with pytest.raises(ConfigError, match="needs env"):
        ExportedPolicy(tmp_path)


@pytest.mark.parametrize("damage", ["card", "weights", "missing"])
def test_a_damaged_export_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    export_policy(algorithm(vector()).policy, tmp_path, {})
    if damage == "card":
        (tmp_path / CARD).write_text("{")
    elif damage == "weights":
        (tmp_path / WEIGHTS).write_bytes(b"not safetensors")
    else:
        (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=str(tmp_path)):
        ExportedPolicy(tmp_path, shape=(4, 3))


def test_sampled_actions_of_an_export_leave_masked_entries_at_zero(tmp_path: Path) -> None:
    env = vector(3, 2, shape=(5, 4))
    export_policy(algorithm(env).policy, tmp_path, {})
    action, _ = ExportedPolicy(tmp_path, env).predict(env.reset(), deterministic=False)
    assert (action[:, 3:5] == 0).all()


def test_a_soft_bound_leaves_a_gradient_where_a_clamp_has_none() -> None:
    values = torch.tensor([-40.0, -6.0, 0.0, 0.5, 6.0], requires_grad=True)
    found = bounded(values, -4.0, 4.0)
    # c + h tanh((x - c) / h), computed in another way: tanh x = 1 - 2 / (exp(2x) + 1)
    wanted = [4.0 * (1.0 - 2.0 / (np.exp(x / 2.0) + 1.0)) for x in values.tolist()]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    found.sum().backward()
    assert values.grad is not None
    assert float(values.grad[2]) == pytest.approx(1.0), "the middle is left as it is"
    assert float(values.grad[1]) > 0.1, "a clamp would have 0 here"
    assert float(values.grad[4]) > 0.1


@pytest.mark.parametrize("start", [-1.0, 0.5, -4.0, 3.0])
def test_a_spread_starts_where_it_is_told_to_inside_its_bounds(start: float) -> None:
    spread = Spread(8, 2, start)
    found = spread(torch.zeros(1, 8))[0].tolist()
    inside = min(max(start, Spread.LOW + 0.03), Spread.HIGH - 0.03)
    assert found == pytest.approx([inside] * 2, abs=1e-4)
