"""What is said of a training that did not do what was asked, or did not help."""

from typing import Any

import numpy as np
import pytest

from mixgym.agents.algorithm_presets import PRESETS
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.reports.findings import FAILED, SOUND, UNKNOWN, judge_harm, judge_updates
from mixgym.trainer.training.algorithms import (
    decisions_per_round,
    make_algorithm,
    training_needs,
    updates_of,
    whole_rounds,
)
from mixgym.trainer.training.outcome import StageOutcome, notes
from mixgym.trainer.training.train import train
from mixgym.trainer.training.training_envs import FastTrainingEnv
from mixgym.trainer.training.validation import TaskScores

from ..conftest import Make


def scores(shift: float) -> TaskScores:
    mean = np.array([2.0, 2.1, 1.9, 2.2]) + shift
    return TaskScores(mean, mean, mean)


def told(agent: float, twin: float, uniform: float, *stages: StageOutcome) -> list[str]:
    found = {"agent": scores(agent), "frozen twin": scores(twin), "uniform": scores(uniform)}
    return notes(RunConfig(), stages, found)


def test_a_training_that_helped_needs_no_words() -> None:
    stage = StageOutcome("curves", 64, 64, {"joint": 3})
    assert told(-0.1, 0.0, 0.0, stage) == []


def test_no_better_than_the_twin_or_worse_than_uniform_is_said() -> None:
    (twin,) = told(0.0, 0.0, 0.0)
    assert "no better than frozen twin" in twin
    twin, uniform = told(0.1, 0.0, 0.0)
    assert "no better than uniform: +0.1000" in uniform


def test_rounding_and_learners_that_never_learnt_are_said() -> None:
    rounded, idle = told(
        -0.1, 0.0, 0.0,
        StageOutcome("curves", 20_480, 32_768, {"joint": 1}),
        StageOutcome("causal_lm", 10, 10, {"joint": 0}),
    )  # fmt: skip
    assert "20,480 decisions were asked for, 32,768 were taken" in rounded
    assert "never updated" in idle
    assert "learning_starts" in idle


def configured(algo: str, **options: Any) -> RunConfig:
    train_ = {"algo": algo, "environments": 2, "options": options}
    config = RunConfig.model_validate({"train": train_})
    return environment_for(training_needs(config), config)


def test_rounds_by_hand() -> None:
    config = configured("ars", n_delta=2, n_top=1)
    env = FastTrainingEnv(config)
    size = decisions_per_round(make_algorithm(config, env.env), 32 * 2)
    assert size == 2 * 2 * 32 * 2, "two candidates a direction, an episode of 32 in both"
    config = configured("ppo", n_steps=4, batch_size=4)
    assert decisions_per_round(make_algorithm(config, FastTrainingEnv(config).env), 64) == 8
    config = configured("sac")
    assert decisions_per_round(make_algorithm(config, FastTrainingEnv(config).env), 64) == 1
    assert whole_rounds(1000, 256) == 768
    assert whole_rounds(100, 256) == 256


@pytest.mark.parametrize(("name", "value"), [("gamma", 1.01), ("gae_lambda", -0.1), ("gamma", 2)])
def test_a_discount_above_one_is_refused(name: str, value: float) -> None:
    config = configured("ppo", **{name: value})
    with pytest.raises(ConfigError, match=rf"train\.options\.{name}={value}: ppo takes .* 0 to 1"):
        make_algorithm(config, FastTrainingEnv(config).env)


def test_a_search_keeps_its_budget(make_config: Make, few_tasks: None) -> None:
    given = {"algo": "ars", "environments": 2, "options": {"n_delta": 1, "n_top": 1}}
    summary = train(make_config("run", train={**given, "decisions": 300}))
    (stage,) = summary["stages"]
    assert stage["decisions"] == 256, "two rounds of 128 and not three"
    assert any("300 decisions were asked for, 256 were taken" in note for note in summary["notes"])


def test_a_training_too_short_to_learn_is_said_and_found(
    make_config: Make, few_tasks: None
) -> None:
    given = {"algo": "td3", "environments": 2, "decisions": 64, "policy": {"width": 8}}
    summary = train(make_config("run", train=given))
    assert summary["stages"][0]["updates"] == {"joint": 0}
    assert PRESETS["td3"].options["learning_starts"] > 64
    assert any("never updated" in note for note in summary["notes"])
    assert summary["best_at_decision"] == 0, "the twin, which nothing has beaten"
    finding = judge_updates(summary["stages"])
    assert finding.status == FAILED
    assert "learning_starts" in finding.sentence
    assert judge_updates([{**summary["stages"][0], "updates": {"joint": 3}}]).status == SOUND
    assert judge_updates([]).status == UNKNOWN


def test_harm_is_found() -> None:
    assert judge_harm("beats uniform", [0.1, 0.2], "uniform").status == FAILED
    assert judge_harm("beats uniform", [-0.1, -0.2], "uniform").status == SOUND


def test_updates_are_counted_by_the_algorithm_itself() -> None:
    config = configured("ppo", n_steps=4, batch_size=4, n_epochs=2)
    algorithm = make_algorithm(config, FastTrainingEnv(config).env)
    assert updates_of(algorithm) == 0
    algorithm.learn(16)
    assert updates_of(algorithm) == 4, "two rollouts, two epochs each"
