"""Training of single levels and of both: what it leaves, and that a killed one goes on."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.agents.policies.composed import Composed, load_agent, policy_folders
from mixgym.agents.policies.export import acting_weights
from mixgym.envs import storage
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import flat_space
from mixgym.trainer.config import RunConfig
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.reports.compare import compare
from mixgym.trainer.training import train as module
from mixgym.trainer.training.train import train
from mixgym.trainer.training.training_log import TensorBoardScalars

from ..conftest import Make, curves

PPO = {"n_steps": 4, "batch_size": 8, "n_epochs": 1}
ONE = {**PPO, "batch_size": 4}  # for the single environment of a language model
OFF = {"learning_starts": 4, "batch_size": 8, "buffer_size": 500, "train_freq": 2, "n_steps": 1}
SMALL = {"width": 8}
LEVELS: dict[str, dict[str, Any]] = {
    "global": {"level": "global", "options": PPO, "period": 3},
    "local": {"level": "local", "options": {**PPO, "batch_size": 48}, "team": 0.5},
    "alternate": {"level": "alternate", "options": PPO, "turns": 3, "period": 2},
    "together": {"level": "together", "options": PPO, "period": 2},
    "together off-policy": {
        "level": "together",
        "algo": "sac",
        "options": {**OFF, "gradient_steps": 1},
        "local_algo": "td3",
        "local_options": {**OFF, "gradient_steps": 1, "learning_starts": 40},
        "local_policy": SMALL,
    },
    "alternate off-policy": {
        "level": "alternate",
        "algo": "td3",
        "options": {**OFF, "gradient_steps": 1},
        "turns": 2,
        "local_algo": "a2c",
        "local_options": {"n_steps": 4},
        "local_policy": SMALL,
    },
}


pytestmark = pytest.mark.usefixtures("few_tasks")


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass between two event files, whose names sort by them."""
    real, ahead = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + 0.01 * next(ahead))

    def later(*arguments: Any) -> TensorBoardScalars:
        for _ in range(300):
            next(ahead)
        return TensorBoardScalars(*arguments)

    monkeypatch.setattr(module, "TensorBoardScalars", later)


@pytest.fixture
def tiny(make_config: Make) -> Callable[..., RunConfig]:
    """72 decisions in two environments, judged and saved twice on the way."""

    def make(folder: str, **train: Any) -> RunConfig:
        given = {"decisions": 72, "environments": 2, "evaluate_every": 24, "policy": SMALL}
        return make_config(folder, train={**given, **train})

    return make


def remains(run: Path) -> dict[str, Any]:
    """What a training leaves, as values to compare; times and paths aside."""
    summary = json.loads((run / "summary.json").read_text())
    return {
        "agent": {str(p.relative_to(run)): p.read_bytes() for p in (run / "agent").rglob("*.*")},
        "twin": {str(p.relative_to(run)): p.read_bytes() for p in (run / "twin").rglob("*.*")},
        "curves": {path.name: curves(path) for path in (run / "tensorboard/training").iterdir()},
        "summary": {name: value for name, value in summary.items() if name != "agent"},
        "checkpoints": sorted(path.name for path in run.glob("checkpoints/*")),
        "entries": sorted(path.name for path in run.iterdir()),
    }


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_leaves_an_agent_and_its_curves(
    name: str, tiny: Callable[..., RunConfig]
) -> None:
    changes = LEVELS[name]
    config = tiny("run", **changes)
    summary = train(config)
    run = Path(config.run.dir)
    assert summary["level"] == changes["level"]
    assert summary["parameters_changed"] is True
    card = json.loads((run / "agent" / "policy.json").read_text())
    learnt = {"global", "local"} if len(name.split()[0]) > 6 else {name}
    assert {level for level, part in card["parts"].items() if part} == learnt
    assert card["period"] == changes.get("period", 1)
    for level in learnt:
        old, new = (acting_weights(run / name / level) for name in ("twin", "last"))
        assert any((old[key] != new[key]).any() for key in old), f"{level} has learnt"
    agent = load_agent(run / "agent", shape=(3, 2))
    assert isinstance(agent, Composed)
    found = curves(run / "tensorboard" / "training" / "0-curves")
    # a turn of the small alternate is shorter than an episode
    assert ("episode/reward/global" in found) == (changes["level"] != "alternate")
    assert ("episode/reward/local/mean" in found) == (changes["level"] != "alternate")
    assert "reward/global" not in found, "runs have that tag"
    assert changes["level"] != "alternate" or "rollout/ep_rew_mean" not in found
    for level in learnt:
        assert any(tag.startswith(f"agent/{level}/train/") for tag in found), [*found]
    assert not any(tag.startswith("train/") for tag in found)
    assert len(found["validation/mean_nll"]) >= 3
    assert train(config, resume=True) == summary, "finished"


class _CrashError(BaseException):
    """Not an Exception: nothing may handle it."""


def run_with_crash(config: RunConfig, number: int) -> bool:
    """Crash at a failpoint, then resume; returns whether that many were reached."""
    reached = itertools.count(1)

    def crash(name: str) -> None:
        if next(reached) == number:
            raise _CrashError(name)

    storage.on_failpoint = crash
    try:
        train(config)
    except _CrashError:
        storage.on_failpoint = None
        train(config, resume=(Path(config.run.dir) / "config.yaml").is_file())
        return True
    finally:
        storage.on_failpoint = None
    return False


def count_failpoints(config: RunConfig) -> int:
    names: list[str] = []
    storage.on_failpoint = names.append
    train(config)
    storage.on_failpoint = None
    return len(names)


def assert_resumes(make: Callable[[str], RunConfig], numbers: Callable[[int], list[int]]) -> None:
    total = count_failpoints(make("unbroken"))
    expected = remains(Path(make("unbroken").run.dir))
    for number in numbers(total):
        config = make(f"crash-{number}")
        assert run_with_crash(config, number)
        assert remains(Path(config.run.dir)) == expected, f"crashed at {number} of {total}"


@pytest.mark.parametrize("name", LEVELS)
def test_a_crashed_training_of_a_level_resumes_bit_equal(
    name: str, tiny: Callable[..., RunConfig]
) -> None:
    assert_resumes(
        lambda folder: tiny(folder, **LEVELS[name]),
        lambda total: [total // 2, total - 10],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_a_training_of_a_level_crashed_often_resumes_bit_equal(
    name: str, tiny: Callable[..., RunConfig]
) -> None:
    assert_resumes(
        lambda folder: tiny(folder, **LEVELS[name]),
        lambda total: np.linspace(4, total, 15).astype(int).tolist(),
    )


def test_both_levels_learn_on_a_language_model_and_resume(
    tiny: Callable[..., RunConfig],
) -> None:
    def staged(folder: str) -> RunConfig:
        return tiny(
            folder,
            level="together",
            stages=["curves", "causal_lm"],
            decisions=16,
            language_decisions=10,
            language_evaluate_every=5,
            options=ONE,
        )

    assert_resumes(staged, lambda total: [total - 10])
    run = Path(staged("unbroken").run.dir)
    found = curves(run / "tensorboard" / "training" / "1-causal_lm")
    ended = [step for step, _ in found["episode/reward/global"]]
    assert ended == [step for step, _ in found["episode/reward/local/addition"]]
    assert ended == [5, 10], "a run is an episode of five decisions"
    summary = json.loads((run / "summary.json").read_text())
    assert "validation/language_nll" not in found, "so short a training changes no run"
    assert found["validation/mean_nll"][0][0] == 0, "judged at the start, on the way, at the end"
    assert [step for step, _ in found["validation/mean_nll"]] == [0, 5, 10]
    scores = summary["language_validation"]
    assert np.isfinite(list(scores.values())).all()
    assert summary["best_in_stage"] == "curves", "a stage that makes nothing better changes nothing"


def test_a_worse_second_stage_leaves_the_agent_of_the_first(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixgym.trainer.training.validation import LanguageJudge

    scores = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(LanguageJudge, "score", lambda self, predict: next(scores, 9.0))
    config = tiny(
        "run", stages=["curves", "causal_lm"], decisions=16, language_decisions=8,
        language_evaluate_every=4, options=ONE,
    )  # fmt: skip
    summary = train(config)
    assert summary["best_in_stage"] == "curves"
    assert summary["best_at_decision"] in (0, 16), "of the first stage, whether it learnt or not"


def test_the_agent_of_another_run_holds_the_other_level(tiny: Callable[..., RunConfig]) -> None:
    joint = tiny("joint", options=PPO, decisions=16)
    train(joint)
    config = tiny("global", level="global", options=PPO, decisions=16, other=joint.run.dir)
    train(config)
    run, before = Path(config.run.dir), Path(joint.run.dir)
    parts = policy_folders(run / "agent")
    assert parts.keys() == {"global", "local"}
    weights = (before / "agent" / "policy.safetensors").read_bytes()
    assert (parts["local"] / "policy.safetensors").read_bytes() == weights
    storage.remove_folder(before)
    both = tiny("local", level="local", options={**PPO, "batch_size": 48}, other=config.run.dir)
    train(both)
    nested = policy_folders(Path(both.run.dir) / "agent")
    assert nested.keys() == {"global/global", "global/local", "local"}
    agent = load_agent(Path(both.run.dir) / "agent", shape=(3, 2))
    observation = np.zeros(flat_space((3, 2)).shape, np.float32)
    assert agent.predict(observation)[0].shape == (9,)


def test_trained_levels_drive_runs_with_other_sources(
    tiny: Callable[..., RunConfig], make_config: Make
) -> None:
    trained = tiny("agent", **{**LEVELS["together"], "decisions": 16})
    train(trained)
    for count in (1, 3):
        names = ["addition", "reversal", "noise"][:count]
        config = make_config(
            f"run-{count}",
            sources={name: {"embedded": name, "rows": 40} for name in names},
            agent={"name": trained.run.dir},
            data={"strata": count},
        )
        assert finetune(config)["status"] == "finished"
        decisions = (Path(config.run.dir) / "decisions.jsonl").read_text().splitlines()
        mixtures = [json.loads(line)["mixture"] for line in decisions]
        actions = [json.loads(line)["action"][:count] for line in decisions]
        assert actions[0] == actions[1], "held for a period of two"
        assert actions[2] == actions[3] != actions[1]
        assert len(mixtures) == 5
    config = make_config("compare")
    report = compare(config, agents=["uniform", trained.run.dir], seeds=1)
    assert [row["agent"] for row in report["leaderboard"]] == ["uniform", "agent"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "joint", "period": 2}, "period"),
        ({"level": "joint", "other": "x"}, "other is for"),
        ({"level": "global", "local_algo": "sac"}, "local_"),
        ({"level": "both"}, "level"),
    ],
)
def test_levels_refuse_what_is_not_theirs(
    changes: dict[str, Any], words: str, tiny: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValueError, match=words):
        tiny("run", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "global", "algo": "dqn"}, "nudges"),
        ({"level": "together", "algo": "ars"}, "beside another"),
        ({"level": "together", "local_algo": "pp0"}, "train.algo=pp0"),
        ({"level": "global", "other": "nowhere"}, "nowhere"),
        ({"level": "local", "options": {"n_stepz": 3}}, "n_stepz"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(
    changes: dict[str, Any], words: str, tiny: Callable[..., RunConfig]
) -> None:
    config = tiny("run", **changes)
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert not Path(config.run.dir).exists()


def test_a_composed_agent_that_lost_a_part_is_refused(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run", **{**LEVELS["together"], "decisions": 16})
    train(config)
    folder = Path(config.run.dir) / "agent"
    storage.remove_folder(folder / "local")
    with pytest.raises(ConfigError, match=r"local/policy\.json is missing"):
        load_agent(folder, shape=(3, 2))


@pytest.mark.parametrize("reward", ["log_utility", "linear", "arm", "worst"])
def test_levels_are_trained_on_other_rewards(reward: str, tiny: Callable[..., RunConfig]) -> None:
    config = tiny("run", **{**LEVELS["together"], "decisions": 16})
    environment = config.environment.model_copy(update={"reward": reward})
    summary = train(config.model_copy(update={"environment": environment}))
    assert summary["parameters_changed"]
    assert [row["agent"] for row in summary["validation"]][:2] == ["uniform", "agent"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "level"),
    [
        ("a2c", "alternate"),
        ("trpo", "local"),
        ("recurrent_ppo", "alternate"),
        ("sac", "local"),
        ("td3", "together"),
        ("ddpg", "global"),
        ("tqc", "together"),
        ("crossq", "local"),
        ("ars", "alternate"),
    ],
)
def test_every_algorithm_with_continuous_actions_learns_at_a_level(
    algo: str, level: str, tiny: Callable[..., RunConfig]
) -> None:
    rollout = {"n_steps": 4}
    small: dict[str, dict[str, Any]] = {
        "a2c": rollout,
        "trpo": {**rollout, "batch_size": 8},
        "recurrent_ppo": {**rollout, "batch_size": 8, "n_epochs": 1},
        "ars": {"n_delta": 2, "n_top": 1},
    }
    options = small.get(algo, {"learning_starts": 4, "batch_size": 8, "buffer_size": 2000})
    decisions = 600 if algo == "ars" else 100  # an update of ars is four episodes
    config = tiny(
        "run", algo=algo, level=level, options=options, policy={}, turns=2, decisions=decisions
    )
    assert train(config)["status"] == "finished"
    last = max((Path(config.run.dir) / "checkpoints").iterdir(), key=lambda p: p.stat().st_mtime)
    learners = 2 if level in ("alternate", "together") else 1
    assert len(list((last / "learners").iterdir())) == learners
