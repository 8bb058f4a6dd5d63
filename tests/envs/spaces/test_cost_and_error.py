"""What a supervised token costs and how far losses can be trusted, as agents of every level see."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

import mixgym  # noqa: F401 - registers the environments
from mixgym.agents.policies.export import ExportedPolicy, export_policy
from mixgym.agents.policies.rows import split_rows
from mixgym.agents.rule import read_signals
from mixgym.envs.build import build_environment
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions, WorldOptions
from mixgym.envs.spaces.observations import (
    SOURCES,
    STRATA,
    layout,
    local_observation,
    parts_of,
)
from mixgym.trainer.config import RunConfig
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
                "environment": {"max_sources": 4, "max_strata": 3} | options,
            }
        )
    )


def columns(flat: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A feature by its name, [..., K] and [..., K, G]."""
    (top, size), (inner, below) = layout(SHAPE)["sources"], layout(SHAPE)["strata"]
    lead = flat.shape[:-1]
    return (
        flat[..., top].reshape(*lead, *size)[..., SOURCES.index(name)],
        flat[..., inner].reshape(*lead, *below)[..., STRATA.index(name)],
    )


def test_a_language_model_shows_both() -> None:
    env = environment()
    seen, _ = env.reset(seed=0)
    world, now = env.world, env.now
    top, cells = columns(seen, "cost")
    mean = world.cost.mean()
    assert (world.cost > 1).all()
    assert top[:2] == pytest.approx(np.log(world.cost / mean), rel=1e-5)
    assert cells[:2, :2] == pytest.approx(np.log(world.cell_cost / mean), rel=1e-5)
    assert top[0] * top[1] < 0  # one above the mean, the other below
    error, inner = columns(seen, "error")
    assert error[:2] == pytest.approx(np.log10(now.source_error / now.source_nll), rel=1e-5)
    known = now.rows > 1
    assert (inner[:2, :2][~known] == 0).all(), "a single row does not tell"
    wanted = np.log10(now.error[known] / now.nll[known])
    assert known.any()
    assert inner[:2, :2][known] == pytest.approx(wanted, rel=1e-5)
    assert ((error[:2] > -4) & (error[:2] < 0)).all()
    for values in (top[2:], cells[2:], cells[..., 2], error[2:], inner[2:], inner[..., 2]):
        assert not values.any(), "padding is zero"
    again = env.step(np.zeros(env.action_space.shape, np.float32))[0]
    assert (columns(again, "cost")[0] == top).all()
    assert (columns(again, "error")[0][:2] != error[:2]).all()


def test_renaming_sources_renames_their_columns() -> None:
    one = environment("addition", "sorting").reset(seed=0)[0]
    two = environment("sorting", "addition").reset(seed=0)[0]
    for name in ("cost", "error"):
        for mine, other in zip(columns(one, name), columns(two, name), strict=True):
            assert mine[[1, 0]] == pytest.approx(other[:2], rel=1e-4)


def test_rules_read_the_raw_numbers() -> None:
    env = environment(observation="dict")
    seen, _ = env.reset(seed=0)
    signals = read_signals(parts_of({name: part[None] for name, part in seen.items()}), 0)
    assert signals.sources["cost"] == pytest.approx(env.world.cost, rel=1e-6)
    assert signals.cells["cost"][:, :2] == pytest.approx(env.world.cell_cost, rel=1e-6)
    assert signals.sources["error"] == pytest.approx(env.now.source_error, rel=1e-6)
    wanted = np.nan_to_num(env.now.error, nan=0.0)
    assert signals.cells["error"][:, :2] == pytest.approx(wanted, rel=1e-6)


def test_a_saved_state_keeps_the_errors(tmp_path: Path) -> None:
    env, other = environment(), environment()
    env.reset(seed=0)
    seen = env.step(np.zeros(env.action_space.shape, np.float32))[0]
    env.save(tmp_path)
    other.reset(seed=1)
    assert (other.load(tmp_path) == seen).all()
    assert (other.now.rows == env.now.rows).all()
    assert (other.now.source_error == env.now.source_error).all()


def test_the_fast_world_shows_its_noise() -> None:
    tasks = [sample_task(seed, sources=4, strata=3) for seed in (1, 2)]
    options = EnvironmentOptions(learner="curves", max_sources=4, max_strata=3)
    env = CurvesVecEnv(2, tasks, options, seed=1)
    seen = env.reset()
    noise, losses = env.core.task.noise, env.core.view.cell_nll
    error, inner = columns(np.asarray(seen), "error")
    assert inner == pytest.approx(np.log10(noise), rel=1e-5)
    # a source's loss is the mean over strata, which err each on its own
    of_mean = np.sqrt(((noise * losses) ** 2).sum(-1)) / losses.sum(-1)
    assert error == pytest.approx(np.log10(of_mean), rel=1e-5)


def test_rows_carry_both_at_every_level() -> None:
    env = environment()
    flat = env.reset(seed=0)[0][None]
    rows = split_rows(torch.from_numpy(flat), *SHAPE)
    own = local_observation(flat, SHAPE)[0]
    local = split_rows(torch.from_numpy(own), 1, 3, "local")
    for name in ("cost", "error"):
        top, cells = columns(flat, name)
        assert (rows.sources[..., SOURCES.index(name)].numpy() == top).all()
        assert (rows.strata[..., STRATA.index(name)].numpy() == cells).all()
        assert (local.sources[:, 0, SOURCES.index(name)].numpy() == top[0]).all()
        assert (local.strata[:, 0, :, STRATA.index(name)].numpy() == cells[0]).all()


ALGORITHMS = ["ppo", "recurrent_ppo", "sac", "td3", "tqc", "crossq", "dqn", "qrdqn", "ars"]


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("feature", ["cost", "error"])
def test_every_family_reads_them(algo: str, feature: str) -> None:
    action = {"dqn": "nudge", "qrdqn": "nudge"}.get(algo, "logits")
    env = DummyVecEnv([lambda: environment(action=action)])
    made: Any = make_algorithm(RunConfig.model_validate({"train": {"algo": algo}}), env)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    seen = np.asarray(env.reset())
    other = seen.copy()
    columns(other, feature)[0][:, 0] += 1.0  # a view: the first source
    assert (other != seen).sum() == 1
    assert not torch.allclose(*(scores_of(made, flat) for flat in (seen, other)))


def scores_of(made: Any, flat: np.ndarray) -> torch.Tensor:
    """What the acting network makes of an observation."""
    net = made.policy
    for name in made.policy.acting.rstrip(".").split("."):
        net = getattr(net, name)
    with torch.no_grad():
        return torch.as_tensor(net.rows(split_rows(torch.from_numpy(flat), *SHAPE)))


def test_an_agent_of_the_layout_before_is_refused(tmp_path: Path) -> None:
    """What was exported before costs and errors were always observed."""
    env = DummyVecEnv([environment])
    made: Any = make_algorithm(RunConfig.model_validate({"train": {"algo": "ppo"}}), env)
    export_policy(made.policy, tmp_path, {"action": "logits"})
    ExportedPolicy(tmp_path, env)
    card = json.loads((tmp_path / "policy.json").read_text())
    card["features"] = {
        "progress": card["features"]["progress"],
        "sources": card["features"]["sources"][:-2],
        "strata": card["features"]["strata"][:-2],
    }
    (tmp_path / "policy.json").write_text(json.dumps({**card, "costs": False}))
    with pytest.raises(ConfigError, match=r"another observation layout.*train it anew"):
        ExportedPolicy(tmp_path, env)
