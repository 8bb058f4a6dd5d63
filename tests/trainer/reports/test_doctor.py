"""The doctor: sound agents are sound, and planted defects are found and said in plain words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mixgym.agents.policies.export import ExportedPolicy
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import flat_space, layout
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.reports import action_statistics
from mixgym.trainer.reports.diagnostics import critic_values
from mixgym.trainer.reports.doctor import doctor_command
from mixgym.trainer.reports.findings import (
    judge_attention,
    judge_bounds,
    judge_gain,
    judge_movement,
    judge_order,
    judge_pay,
    judge_values,
)
from mixgym.trainer.training.train import train

from ..conftest import Make

SHAPE = (3, 2)
OF_RUNS = ["moves", "observes", "beats its twin", "rewards", "bounds", "values"]
CHECKS = [
    *("learns", "moves", "observes", "beats its twin", "beats uniform", "order"),
    *("rewards", "bounds", "values"),
]


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixgym.envs.curves.tasks import sets

    monkeypatch.setitem(sets.TASK_SETS, "world-train", sets.TASK_SETS["world-train"][:8])
    monkeypatch.setitem(sets.TASK_SETS, "world-validation", sets.TASK_SETS["world-validation"][:6])


@pytest.fixture
def tiny(make_config: Make) -> Callable[..., RunConfig]:
    def make(folder: str, **train: Any) -> RunConfig:
        given: dict[str, Any] = {
            "decisions": 64,
            "environments": 2,
            "options": {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
            "policy": {"width": 8},
        }
        return make_config(folder, train={**given, **train})

    return make


def findings(run: str | Path) -> dict[str, dict[str, Any]]:
    report = doctor_command(Path(run), json_output=True)
    checks = CHECKS if report["kind"] == "training" else OF_RUNS
    assert [f["check"] for f in report["findings"]] == checks
    assert report["healthy"] == all(f["status"] != "failed" for f in report["findings"])
    return {f["check"]: f for f in report["findings"]}


# --- planted defects ------------------------------------------------------------------------------


def test_an_actor_whose_optimiser_is_never_stepped_is_found(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = stable_baselines3.PPO.train

    def only_the_critic(self: Any) -> None:
        actor = {
            n: p.detach().clone() for n, p in self.policy.named_parameters() if "value" not in n
        }
        learn(self)
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if name in actor:
                    parameter.copy_(actor[name])

    monkeypatch.setattr(stable_baselines3.PPO, "train", only_the_critic)
    config = tiny("run")
    train(config)
    found = findings(config.run.dir)
    assert found["moves"]["status"] == "failed"
    assert "never learnt" in found["moves"]["sentence"]
    assert "optimiser" in found["moves"]["sentence"]
    assert found["beats its twin"]["status"] == "failed", "it is its twin"
    result = CliRunner().invoke(app, ["doctor", config.run.dir])
    assert result.exit_code == 1
    assert "never learnt" in result.output


def test_an_actor_that_ignores_its_input_is_found(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run")
    train(config)
    before = findings(config.run.dir)
    assert before["observes"]["status"] == "sound"
    assert before["moves"]["status"] == "sound"
    blind(Path(config.run.dir) / "agent")
    found = findings(config.run.dir)
    assert found["observes"]["status"] == "failed"
    assert "ignores what it observes" in found["observes"]["sentence"]
    assert CliRunner().invoke(app, ["doctor", config.run.dir]).exit_code == 1


def blind(agent: Path) -> None:
    """Leave of the acting network nothing but its biases, which no observation moves."""
    weights = load_file(agent / "policy.safetensors")
    acting = [name for name in weights if name.startswith("actor_net.")]
    for name in acting:
        if name.endswith("weight"):
            weights[name].zero_()
        elif name.endswith("bias"):
            weights[name].fill_(0.7)
    save_file(weights, agent / "policy.safetensors")
    policy = ExportedPolicy(agent, shape=SHAPE)
    seen = np.random.default_rng(0).normal(size=(2, *flat_space(SHAPE).shape)).astype(np.float32)
    part, _ = layout(SHAPE)["masks"]
    seen[:, part] = 1
    one, other = policy.predict(seen)[0]
    assert one.tolist() == other.tolist()


def test_one_reward_for_all_sources_is_found(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixgym.trainer.reports import diagnostics as examination

    config = tiny("run", decisions=16)
    train(config)

    def alike(record: Any, sources: int) -> np.ndarray:
        return np.full(sources, 0.25)

    assert findings(config.run.dir)["rewards"]["status"] == "sound"
    monkeypatch.setattr(examination, "_local", alike)
    found = findings(config.run.dir)["rewards"]
    assert found["status"] == "failed"
    assert "paid alike" in found["sentence"]


# --- other trainings and runs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"level": "together", "period": 2}, ["global", "local"]),
        ({"algo": "sac", "options": {"learning_starts": 8, "n_steps": 1}}, ["joint"]),
        ({"algo": "tqc", "options": {"learning_starts": 8}}, ["joint"]),
        ({"algo": "dqn", "options": {"learning_starts": 8}}, ["joint"]),
        ({"algo": "qrdqn", "options": {"learning_starts": 8}}, ["joint"]),
    ],
    ids=lambda value: value.get("algo", value.get("level")) if isinstance(value, dict) else "",
)
def test_every_kind_of_critic_is_asked(
    changes: dict[str, Any], levels: list[str], tiny: Callable[..., RunConfig]
) -> None:
    config = tiny("run", **{"decisions": 32, **changes})
    train(config)
    found = findings(config.run.dir)
    assert [*found["values"]["numbers"]] == [f"explained_{level}" for level in levels]
    assert all(np.isfinite([*found["values"]["numbers"].values()]))
    nudges = changes.get("algo") in ("dqn", "qrdqn")
    assert (found["bounds"]["status"] == "unknown") == nudges


def test_a_search_has_no_critic(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run", algo="ars", options={"n_delta": 2, "n_top": 1}, policy={}, decisions=64)
    train(config)
    assert findings(config.run.dir)["values"]["status"] == "unknown"


def test_values_of_rows_by_hand() -> None:
    class Policy:
        critic = None

        def set_training_mode(self, mode: bool) -> None:
            assert not mode

        def predict_values(self, seen: torch.Tensor) -> torch.Tensor:
            return seen.sum(1, keepdim=True)

    class Algorithm:
        policy: Any = Policy()

    seen = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert critic_values(Algorithm(), seen, seen).tolist() == [1, 5, 9]  # type: ignore[union-attr]
    twin_critics = Policy()
    twin_critics.critic = lambda seen, acted: (seen[:, :1], acted[:, 1:])  # type: ignore[assignment]
    Algorithm.policy = twin_critics
    assert critic_values(Algorithm(), seen, seen).tolist() == [0.5, 2.5, 4.5]  # type: ignore[union-attr]


def test_runs_of_rules_and_of_trained_agents(
    tiny: Callable[..., RunConfig], make_config: Make
) -> None:
    options = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "learning_rate": 0.01}
    trained = tiny("agent", options=options)
    train(trained)
    last = Path(trained.run.dir) / "last"  # the best may be one that has not moved yet
    driven = make_config("driven", agent={"name": str(last)})
    finetune(driven)
    found = findings(driven.run.dir)
    assert found["moves"]["status"] == "sound"
    assert found["observes"]["status"] == "sound"
    assert (found["bounds"]["status"], found["values"]["status"]) == ("sound", "unknown")
    blind(last)
    assert findings(driven.run.dir)["observes"]["status"] == "failed"
    ruled = make_config("uniform")
    finetune(ruled)
    found = findings(ruled.run.dir)
    assert found["moves"]["status"] == "unknown", "uniform does not move, by design"
    assert found["observes"]["status"] == "unknown"
    result = CliRunner().invoke(app, ["doctor", ruled.run.dir, "--json"])
    assert (result.exit_code, json.loads(result.stdout)["kind"]) == (0, "fine-tuning")


def test_a_mixture_that_never_moves_is_found(make_config: Make) -> None:
    config = make_config("run", agent={"name": "easy_to_hard"})
    finetune(config)
    assert findings(config.run.dir)["moves"]["status"] == "sound"
    path = Path(config.run.dir) / "decisions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {name: lines[0][name] for name in ("mixture", "strata")}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = findings(config.run.dir)["moves"]
    assert found["status"] == "failed"
    assert "easy_to_hard does not react" in found["sentence"]


def test_folders_without_a_patient_are_refused(tmp_path: Path, make_config: Make) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        doctor_command(tmp_path, json_output=True)
    assert CliRunner().invoke(app, ["doctor", str(tmp_path)]).exit_code == 2
    from mixgym.trainer.runs.folder import RunFolder

    config = make_config("empty")
    RunFolder.create(config.run.dir, config)
    with pytest.raises(ConfigError, match="neither an agent nor decisions"):
        doctor_command(Path(config.run.dir), json_output=True)


# --- verdicts and measures by hand ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "status", "words"),
    [
        (judge_movement(0.0, 0.0), "failed", "never learnt"),
        (judge_movement(1e-9, 1e-6), "failed", "its distribution did not"),
        (judge_movement(0.1, 0.2), "sound", "20.0% of the weight"),
        (judge_attention(0.0, 0.0005), "failed", "ignores"),
        (judge_attention(0.0, 0.01), "sound", "1.0%"),
        (judge_gain("g", [-1.0, -1.1, -0.9], "x"), "sound", "1.0000 nats (s.e. 0.0577) below x"),
        (judge_gain("g", [-1.0, 1.0, -0.5], "x"), "failed", "not better than x"),
        (judge_gain("g", [0.1, 0.2], "x"), "failed", "above it"),
        (judge_pay(0.0), "failed", "paid alike"),
        (judge_pay(float("nan")), "unknown", "fewer than two"),
        (judge_bounds(0.6, 0.0), "failed", "60.0% of the sources'"),
        (judge_bounds(0.1, 0.4), "sound", "40.0% of the strata's"),
        (judge_values({"joint": -0.1}), "failed", "no better than a constant"),
        (judge_values({"global": 0.5, "local": -0.1}), "failed", "-10.0% (local)"),
        (judge_values({"joint": float("nan")}), "unknown", "no value function"),
    ],
)
def test_verdicts(finding: Any, status: str, words: str) -> None:
    assert finding.status == status
    assert words in finding.sentence


def observations(count: int) -> np.ndarray:
    """Random rows; the last source is absent, and the second one has one stratum."""
    rng = np.random.default_rng(1)
    seen = rng.uniform(-1, 1, (count, *flat_space(SHAPE).shape)).astype(np.float32)
    part, _ = layout(SHAPE)["masks"]
    seen[:, part] = [1, 1, 0, 1, 1, 1, 0, 0, 0]
    return seen


def test_changed_observations_keep_their_masks_and_their_rows() -> None:
    seen = observations(20)
    masks, _ = layout(SHAPE)["masks"]
    rows = {name: layout(SHAPE)[name][0] for name in ("progress", "sources", "strata")}
    mixed = action_statistics.shuffled(seen, SHAPE, np.random.default_rng(0))
    flat = action_statistics.constant(seen, SHAPE)
    for changed in (mixed, flat):
        assert changed[:, masks].tolist() == seen[:, masks].tolist()
    assert sorted(mixed[:, rows["progress"]].ravel()) == sorted(seen[:, rows["progress"]].ravel())
    size = layout(SHAPE)["sources"][1]
    before, after = (v[:, rows["sources"]].reshape(-1, *size) for v in (seen, mixed))
    assert after[:, 2].tolist() == before[:, 2].tolist(), "absent rows stay"
    present = sorted(map(tuple, before[:, :2].reshape(-1, size[-1]).tolist()))
    assert sorted(map(tuple, after[:, :2].reshape(-1, size[-1]).tolist())) == present
    assert before[:, :2].tolist() != after[:, :2].tolist()
    level = flat[:, rows["sources"]].reshape(-1, *size)[:, :2]
    assert np.ptp(level.reshape(-1, size[-1]), axis=0) == pytest.approx(0)
    assert level[0, 0] == pytest.approx(before[:, :2].reshape(-1, size[-1]).mean(0), abs=1e-6)


def test_shares_by_hand() -> None:
    seen = observations(1)
    action = np.array([[0.5, -0.5, 9, 0, 0, 1, 0, 0, 0]], np.float32)
    top, inner = action_statistics.shares(action, seen, SHAPE, "logits", reach=0.9)
    # scale of two: half of log 9; p over (1 + e^(s * difference))
    first = 1 / (1 + np.exp(-0.5 * np.log(9.0)))
    assert top == pytest.approx(np.array([[first, 1 - first, 0]]))
    assert inner == pytest.approx(np.array([[0.5, 0.5], [1, 0]]))
    weights = np.array([[0.3, 0.1, 9, 0.2, 0.2, 0, 0, 0, 0]], np.float32)
    top, inner = action_statistics.shares(weights, seen, SHAPE, "weights", reach=0.9)
    assert top == pytest.approx(np.array([[0.75, 0.25, 0]]))
    assert inner == pytest.approx(np.array([[0.5, 0.5], [1, 0]]))
    (nudge,) = action_statistics.shares(np.array([4]), seen, SHAPE, "nudge", reach=0.9)
    assert nudge.argmax() == 4


def test_bounds_spread_and_returns_by_hand() -> None:
    seen = observations(2)
    action = np.zeros((2, 9), np.float32)
    action[0, 0], action[:, 2], action[1, 3] = 1, 1, -1  # the third source is absent
    assert action_statistics.at_bound(action, seen, SHAPE) == pytest.approx((0.25, 1 / 6))
    local = np.array([[1.0, 3.0, np.nan], [2.0, np.nan, np.nan], [-1.0, 1.0, np.nan]])
    # deviations 1 and 1; sizes 1 3 1 1
    assert action_statistics.spread(local) == pytest.approx(1 / 1.5)
    assert np.isnan(action_statistics.spread(local[1:2]))
    assert action_statistics.spread(np.full((3, 2), 0.1)) == pytest.approx(0)
    rewards = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]])
    assert action_statistics.returns(rewards, 0.5).tolist() == [[3, 0.5], [4, 1], [4, 0]]
    found = np.array([0.0, 2.0, 4.0])
    assert action_statistics.explained(np.zeros(3), found) == 0
    assert action_statistics.explained(found / 2, found) == pytest.approx(0.75)
    assert np.isnan(action_statistics.explained(found, np.ones(3)))


def test_an_order_that_is_worth_something_is_told_from_a_mixture() -> None:
    apart = [0.03, 0.05, 0.04, 0.04]
    found = judge_order(apart, [2 * x for x in apart])
    assert found.status == "sound"
    assert found.sentence.startswith("schedules: order is worth 0.0400 +- 0.0041 nats")
    found = judge_order([0.03, -0.03, 0.01, -0.012], apart)
    assert found.status == "sound"
    assert found.sentence.startswith(
        "picks a mixture: its own mean mixture held fixed ends -0.0005"
    )
    assert judge_order([0.0] * 4, [0.0] * 4).sentence.startswith("picks a mixture")
    harmful = judge_order([-x for x in apart], apart)
    assert harmful.status == "failed"
    assert "hold the mean mixture instead" in harmful.sentence
    assert harmful.numbers["own_mean_held"] == pytest.approx(-0.04)
