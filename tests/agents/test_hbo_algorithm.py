"""HBO as an algorithm of Stable-Baselines3: its step, what it learns, resume, and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from mixgym.agents.hbo.algorithm import HBO
from mixgym.agents.hbo.rollout import after_steps, measured, units_of
from mixgym.agents.hbo.updates import softmax
from mixgym.agents.policies.export import ExportedPolicy, export_policy
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.agents.policies.plain import MlpPolicy, TablePolicy
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions

SHAPE = (5, 3)
DIRICHLET = {"head": "dirichlet"}


def world(count: int = 8, decisions: int = 8, tasks: int = 8, **environment: Any) -> CurvesVecEnv:
    options = {"probes": {"gradient_alignment": 1, "perplexity_ratio": 1}, **environment}
    return CurvesVecEnv(
        count,
        [sample_task(seed, sources=3 + seed % 2, strata=2 + seed % 2) for seed in range(tasks)],
        EnvironmentOptions(learner="curves", max_sources=SHAPE[0], max_strata=SHAPE[1], **options),
        decisions=decisions,
    )


def algorithm(env: CurvesVecEnv, **options: Any) -> HBO:
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 32, "n_epochs": 2, "seed": 0}
    return HBO(
        HierarchicalPolicy,
        env,
        device="cpu",
        policy_kwargs={"width": 16, "log_std_init": -2.0},
        **{**settings, **options},
    )


def gaps(model: HBO) -> dict[str, float]:
    return {k: v for k, v in model.logger.name_to_value.items() if k.endswith("_gap")}


def test_what_actions_mean_is_what_the_environment_makes_of_them() -> None:
    for prior in ("uniform", "proportional"):
        env = world(prior=prior)
        flat = env.reset()
        action = np.random.default_rng(0).uniform(-1, 1, (8, *(env.action_space.shape or ())))
        top, inner = units_of(flat, SHAPE, 0.02, 0.9)
        _, _, _, infos = env.step(action.astype(np.float32))
        for units, entries, key in (
            (top, action[:, :5], "mixture"),
            (inner, action[:, 5:].reshape(-1, *SHAPE), "strata"),
        ):
            soft = softmax(units.scale * entries + units.base, units.mask)
            floor = np.where(units.mask, np.exp(units.base), 0.0)
            weights = 0.98 * soft + 0.02 * floor
            for i, info in enumerate(infos):
                for k, found in enumerate(info["decision"][key].values()):
                    own = weights[i, k] if key == "mixture" else weights[i, k, : len(found)]
                    np.testing.assert_allclose(own, found, rtol=2e-4, atol=1e-7)


def test_rewards_come_out_of_the_records() -> None:
    infos: list[dict[str, Any]] = [
        {
            "decision": {
                "mixture": {"a": 0.5, "b": 0.5},
                "probes": {
                    "gradient_norm": {"b": 2.0},
                    "nll_difference": {"a": [0.0, None], "b": [-1.0, -2.0]},
                },
            }
        },
        {"decision": {"mixture": {"a": 1.0}}},
        {"failure": "diverged"},
    ]
    norm = measured(infos, "gradient_norm", (3, 2))
    np.testing.assert_array_equal(norm[0], [np.nan, 2, np.nan])
    assert np.isnan(norm[1:]).all()
    ratio = measured(infos, "nll_difference", (3, 2))[0]
    np.testing.assert_allclose(ratio[:2], np.exp([[0.0, np.nan], [-1.0, -2.0]]))


def test_rewards_belong_to_the_observation_that_came_with_them() -> None:
    seen = np.arange(6.0).reshape(3, 2, 1)
    dones = np.array([[False, False], [False, True], [False, False]])
    found = after_steps(seen, np.array([[8.0], [9.0]]), dones)
    np.testing.assert_array_equal(found[..., 0], [[2, 3], [4, np.nan], [8, 9]])


def test_one_step_is_the_papers_gradient() -> None:
    env = world()
    sgd = {"optimizer": "sgd", "learning_rate": 0.1, "normalize": "none"}
    model = algorithm(
        env, batch_size=0, n_epochs=1, levels="global", global_level=sgd, max_grad_norm=1e9
    )
    seen: dict[str, Any] = {}
    follow = model._follow
    model._follow = lambda index, flat, found: seen.update(  # type: ignore[method-assign]
        flat=flat, found=found
    )
    model.learn(64)
    known = np.isfinite(seen["flat"][:, 0]) & np.isfinite(seen["found"]).any(-1)
    flat, found = seen["flat"][known], np.nan_to_num(seen["found"][known])
    twin = HierarchicalPolicy(
        env.observation_space, env.action_space, lambda _: 0.0, width=16, log_std_init=-2.0
    )
    twin.load_state_dict(model.policy.state_dict())
    units = units_of(flat, SHAPE, 0.02, 0.9)[0]
    mean = twin.actor_net(twin.rows(torch.as_tensor(flat, dtype=torch.float32))).inner.mean[:, :5]
    logits = torch.as_tensor(units.scale) * mean + torch.as_tensor(units.base)
    logits = logits.masked_fill(~torch.as_tensor(units.mask), -torch.inf)
    log_p = torch.log_softmax(logits, -1).masked_fill(~torch.as_tensor(units.mask), 0.0)
    loss = -(torch.as_tensor(found) * log_p).sum(-1).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    follow(0, seen["flat"], seen["found"])
    for ours, theirs in zip(model.policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_policy_learns_to_say_what_the_probes_say() -> None:
    model = algorithm(world(), local_level={"reward": "perplexity_ratio"})
    model.learn(64)
    before = gaps(model)
    model.learn(1280, reset_num_timesteps=False)
    after = gaps(model)
    assert set(after) == {"train/global_gap", "train/local_gap"}
    assert all(after[name] < 0.75 * before[name] for name in before)


@pytest.mark.parametrize("levels", ["both", "global", "local", "none"])
def test_only_the_levels_that_are_learned_move(levels: str) -> None:
    model = algorithm(world(), levels=levels, local_level={"reward": "perplexity_ratio"})
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(128)
    after = model.policy.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".top." in name for name in moved) == (levels in ("both", "global"))
    assert any(".inner." in name for name in moved) == (levels in ("both", "local"))
    assert not any("value_net" in name or "log_std" in name for name in moved)


@pytest.mark.parametrize("update", ["sampled", "sampled_importance_weighted", "closed_form"])
def test_every_update_rule_trains(update: str) -> None:
    model = algorithm(world(), global_level={"update": update}, local_level={"update": update})
    before = [value.clone() for value in model.policy.actor_net.parameters()]  # type: ignore[union-attr]
    model.learn(128)
    after = list(model.policy.actor_net.parameters())  # type: ignore[union-attr]
    assert all(torch.isfinite(value).all() for value in after)
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


def test_saved_and_loaded_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = algorithm(world())
    whole.learn(64)
    whole.save(tmp_path / "model.zip")
    env = world()
    again = HBO.load(tmp_path / "model.zip", env=env, device="cpu", force_reset=False)
    assert again.num_timesteps == 64
    assert again._told == []
    env.set_state(whole.get_env().state())  # type: ignore[union-attr]
    torch_stream = torch.get_rng_state()
    whole.learn(64, reset_num_timesteps=False)
    torch.set_rng_state(torch_stream)
    again._last_obs = env.core.observe()
    again.learn(64, reset_num_timesteps=False)
    for ours, theirs in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_exported_it_drives_another_number_of_sources_without_probes(tmp_path: Path) -> None:
    model = algorithm(world())
    model.learn(64)
    export_policy(model.policy, tmp_path, {"floor": 0.02, "reach": 0.9})
    env = CurvesVecEnv(
        2,
        [sample_task(3, sources=9, strata=4)],
        EnvironmentOptions(learner="curves", max_sources=9, max_strata=4),
    )
    action, _ = ExportedPolicy(tmp_path, env).predict(env.reset())
    assert action.shape == (2, 45)
    assert (action != 0).any()


@pytest.mark.parametrize("policy", ["table", "mlp"])
def test_plain_policies_learn_and_are_exported(policy: Any, tmp_path: Path) -> None:
    env = world(tasks=1)
    model = HBO(
        "equivariant",
        env,
        actor=policy,
        n_steps=8,
        device="cpu",
        seed=0,
        local_level={"reward": "perplexity_ratio"},
        policy_kwargs={"width": 8},
    )
    model.learn(64)
    before = gaps(model)
    model.learn(1000, reset_num_timesteps=False)
    assert gaps(model)["train/global_gap"] < before["train/global_gap"]
    flat = env.reset()
    export_policy(model.policy, tmp_path, {})
    exported, _ = ExportedPolicy(tmp_path, env).predict(flat)
    own, _ = model.predict(flat, deterministic=True)
    np.testing.assert_allclose(exported, own, atol=1e-6)
    other = CurvesVecEnv(
        1,
        [sample_task(0, sources=7, strata=2)],
        EnvironmentOptions(learner="curves", max_sources=7, max_strata=2),
    )
    if policy == "table":
        with pytest.raises(ConfigError, match="belongs to one mixture"):
            ExportedPolicy(tmp_path, other).predict(other.reset())
    else:
        assert ExportedPolicy(tmp_path, other).predict(other.reset())[0].shape == (1, 21)


@pytest.mark.parametrize("kind", [PPO, A2C])
@pytest.mark.parametrize("policy", [TablePolicy, MlpPolicy])
def test_plain_policies_serve_other_algorithms(kind: Any, policy: Any, tmp_path: Path) -> None:
    env = world(reward="log_utility", probe_at_start=True)
    model = kind(policy, env, n_steps=8, gamma=0.0, device="cpu", policy_kwargs={"width": 8})
    before = [value.clone() for value in model.policy.actor_net.parameters()]
    model.learn(256)
    after = model.policy.actor_net.parameters()
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    model.save(tmp_path / "model.zip")
    again = kind.load(tmp_path / "model.zip", device="cpu")
    flat = env.reset()
    np.testing.assert_array_equal(
        again.predict(flat, deterministic=True)[0], model.predict(flat, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": "all"}, "levels=all: choose one of both"),
        ({"actor": "tree"}, "actor=tree: choose one of equivariant, table, mlp"),
        ({"global_level": {"rate": 1}}, "train.options.global_level.rate: HBO has no such option"),
        ({"local_level": {"reward": "gradient_norm"}}, "train.options.local_level.reward=grad"),
        ({"global_level": {"power": 0}}, "train.options.global_level.power=0"),
    ],
)
def test_options_that_will_not_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        algorithm(world(), **options)


def test_a_probe_that_is_not_measured_is_named() -> None:
    model = algorithm(world(probes={}))
    with pytest.raises(ConfigError, match=r"set environment\.probes\.gradient_alignment=1"):
        model.learn(64)


def test_a_policy_without_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the Gaussian head"):
        HBO("equivariant", world(action="weights"), device="cpu", policy_kwargs=DIRICHLET)
