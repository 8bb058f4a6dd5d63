"""HBO drives fine-tuning runs of a language model: records, curves, kill and resume, periods."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.environment_needs import environment_for, merged_probes
from mixgym.trainer.finetuning import finetune as finetune_module
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.runs.recorder import Recorder

Make = Callable[..., RunConfig]
Remains = Callable[[Path], dict[str, Any]]

LEARNERS: dict[str, dict[str, Any]] = {
    "table": {"preset": "released", "global": {"inner_steps": 20, "warm_start": "log_prior"}},
    "perceptrons": {
        "preset": "paper",
        "global": {"learning_rate": 0.1, "update": "sampled", "hidden": 4},
        "local": {"learning_rate": 0.1, "shared": True, "hidden": 4, "ema": 0.5},
    },
    "network": {
        "global": {"actor": "equivariant", "hidden": 4, "optimizer": "adam"},
        "local": {"actor": "equivariant", "hidden": 4, "shared": True, "optimizer": "adam"},
    },
}


class _KillError(BaseException):
    """Nothing that the code under test may catch."""


@pytest.fixture(autouse=True)
def _plain_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_module, "render_rgb", lambda *_: np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("name", LEARNERS)
def test_a_killed_run_goes_on_to_the_same_bits(
    name: str, make_config: Make, remains: Remains, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = {"name": "hbo", "options": LEARNERS[name]}
    whole = make_config("whole", agent=agent)
    finetune(whole)
    config = make_config("killed", agent=agent)
    step, count = Recorder._on_step, [0]

    def killed(recorder: Recorder) -> bool:
        count[0] += 1
        if count[0] == 4:  # after the checkpoint of decision 2, before that of 4
            raise _KillError
        return step(recorder)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_on_step", killed)
        with pytest.raises(_KillError):
            finetune(config)
    finetune(config, resume=True)
    left, right = (remains(Path(c.run.dir)) for c in (config, whole))
    assert left == right
    assert storage.on_failpoint is None


def test_records_and_curves_say_what_moved_the_actors(make_config: Make, remains: Remains) -> None:
    options = {"global": {"reward": "gradient_norm_last", "period": 2}}
    config = make_config("run", agent={"name": "hbo", "options": options})
    finetune(config)
    found = remains(Path(config.run.dir))
    decisions = found["decisions"]
    assert [("gradient_norm_last" in d.get("probes", {})) for d in decisions] == [
        False, True, False, True, False,
    ]  # fmt: skip
    moved = ["reward_sources" in d.get("actor", {}) for d in decisions]
    assert moved == [False, False, True, False, True]  # a probe moves the next decision
    assert ["reward_strata" in d.get("actor", {}) for d in decisions] == [False] + [True] * 4
    change = decisions[2]["actor"]["change_sources"]
    before, after = decisions[1]["mixture"], decisions[2]["mixture"]
    for source, value in change.items():
        assert (value > 0) == (after[source] > before[source])
    assert {"actor/change_sources/addition", "actor/reward_strata/noise/1"} <= set(found["curves"])
    assert decisions[-1]["cost"]["probe_tokens"] > 0
    json.dumps(decisions)


def test_the_environment_is_built_from_what_the_agent_needs(make_config: Make) -> None:
    config = make_config(
        "run",
        environment={"probes": {"loss": 4, "gradient_norm": 1, "gradient_norm_last": 5}},
        agent={"name": "hbo", "options": {"global": {"period": 3}, "update_at_start": True}},
    )
    environment = environment_for(find_agent(config.agent).requires, config).environment
    assert environment.probes == {"loss": 4, "gradient_norm": 1, "gradient_norm_last": 3}
    assert environment.probe_at_start
    assert (environment.action, environment.observation) == ("weights", "dict")
    assert merged_probes({}, {"loss": 2}) == {"loss": 2}


def test_a_missing_reference_and_bad_options_are_named(make_config: Make) -> None:
    options = {"local": {"reward": "excess_loss"}}
    config = make_config("run", agent={"name": "hbo", "options": options})
    with pytest.raises(ConfigError, match=r"environment\.reference: hbo reads the losses"):
        finetune(config)
    assert not Path(config.run.dir).exists()
    with pytest.raises(ConfigError, match=r"agent\.options\.global\.rate: HBO has no such option"):
        find_agent(AgentOptions(name="hbo", options={"global": {"rate": 1}}))
