"""`mixgym train` with other algorithms than PPO: crash, resume, and driving a fine-tuning run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgym.agents.algorithm_presets import PRESETS
from mixgym.agents.policies.export import ExportedPolicy
from mixgym.envs import storage
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.training.train import train

from ..conftest import Make

OPTIONS: dict[str, dict[str, Any]] = {
    "on_policy": {"n_steps": 8},
    "off_policy": {
        "buffer_size": 64,
        "learning_starts": 8,
        "batch_size": 8,
        "train_freq": 8,
        "gradient_steps": 1,
    },
    "search": {"n_delta": 1, "n_top": 1},
}
MORE = {
    "ppo": {"batch_size": 8, "n_epochs": 1},
    "recurrent_ppo": {"batch_size": 8, "n_epochs": 1},
    "trpo": {"batch_size": 8, "cg_max_steps": 2, "n_critic_updates": 1, "sub_sampling_factor": 1},
    "dqn": {"target_update_interval": 8},
    "qrdqn": {"target_update_interval": 8},
}


class _CrashError(BaseException):
    """Not an Exception: nothing may handle it."""


pytestmark = pytest.mark.usefixtures("few_tasks")


@pytest.fixture
def tiny(make_config: Make) -> Callable[..., RunConfig]:
    def make(folder: str, algo: str, **changes: Any) -> RunConfig:
        options = {**OPTIONS[PRESETS[algo].family], **MORE.get(algo, {})}
        given = {
            "algo": algo,
            "decisions": 256 if algo == "ars" else 64,
            "environments": 2,
            "evaluate_every": 32,
            "save_every": 16,
            "options": options,
            "policy": {} if algo == "ars" else {"width": 8},
        }
        sections = {name: changes.pop(name) for name in ("environment",) if name in changes}
        return make_config(folder, train={**given, **changes}, **sections)

    return make


@pytest.mark.parametrize("algo", ["sac", "dqn", "recurrent_ppo", "ars"])
def test_a_crashed_training_leaves_the_same_agent(
    algo: str, tiny: Callable[..., RunConfig]
) -> None:
    whole, broken = tiny("whole", algo), tiny("broken", algo)
    train(whole)
    total: list[str] = []
    storage.on_failpoint = total.append
    try:
        train(tiny("counted", algo))
    finally:
        storage.on_failpoint = None
    reached = 0

    def crash(name: str) -> None:
        nonlocal reached
        reached += 1
        if reached == 2 * len(total) // 3:
            raise _CrashError(name)

    storage.on_failpoint = crash
    try:
        with pytest.raises(_CrashError):
            train(broken)
    finally:
        storage.on_failpoint = None
    train(broken, resume=True)
    for name in ("agent", "twin"):
        files = [Path(c.run.dir) / name / "policy.safetensors" for c in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(("algo", "action"), [("dqn", "nudge"), ("sac", "delta"), ("ars", None)])
def test_an_agent_of_another_action_kind_drives_a_fine_tuning_run(
    algo: str, action: str | None, tiny: Callable[..., RunConfig], make_config: Make
) -> None:
    environment = {} if action is None or action == "nudge" else {"action": action}
    trained = tiny("agent", algo, environment=environment)
    train(trained)
    card = json.loads((Path(trained.run.dir) / "agent" / "policy.json").read_text())
    assert card["action"] == (action or "logits")
    names = ["addition", "reversal", "noise"]
    config = make_config(
        "run",
        sources={name: {"embedded": name, "rows": 40} for name in names},
        agent={"name": trained.run.dir},
        data={"strata": 2},
    )
    summary = finetune(config)
    assert summary["status"] == "finished"
    assert [*summary["sources"]] == names
    rows = (Path(config.run.dir) / "decisions.jsonl").read_text().splitlines()
    assert len(json.loads(rows[0])["action"]) == (1 if action == "nudge" else 3 + 3 * 2)


def test_a_memory_survives_a_checkpoint_of_a_fine_tuning_run(
    tiny: Callable[..., RunConfig], make_config: Make
) -> None:
    trained = tiny("agent", "recurrent_ppo")
    train(trained)

    def run(folder: str) -> RunConfig:
        names = ["addition", "reversal"]
        return make_config(
            folder,
            sources={name: {"embedded": name, "rows": 40} for name in names},
            agent={"name": trained.run.dir},
            data={"strata": 2},
        )

    finetune(run("whole"))
    reached = 0

    def crash(name: str) -> None:
        nonlocal reached
        reached += 1
        if reached == 40:
            raise _CrashError(name)

    storage.on_failpoint = crash
    try:
        with pytest.raises(_CrashError):
            finetune(run("broken"))
    finally:
        storage.on_failpoint = None
    finetune(run("broken"), resume=True)
    lines = [
        (Path(run(name).run.dir) / "decisions.jsonl").read_text().splitlines()
        for name in ("whole", "broken")
    ]
    actions = [[json.loads(line)["action"] for line in part] for part in lines]
    assert actions[0] == actions[1]
    agent = ExportedPolicy(Path(trained.run.dir) / "agent", shape=(2, 2))
    assert agent.spec.memory > 0
