"""An agent with a stock policy, trained on a registered id, drives runs of its padded size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import PPO

import mixgym  # noqa: F401 - registers the environments
from mixgym.envs import storage
from mixgym.envs.errors import MixgymError
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.finetuning.finetune import finetune

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on tasks of up to 12 sources."""
    env: Any = gym.make(
        "mixgym/Mixture-v0",
        environment={"tasks": "train", "max_sources": 12, "max_strata": 4},
        training={"steps": 8, "interval": 1},
    )
    algorithm = PPO("MlpPolicy", env, n_steps=16, batch_size=8, device="cpu", seed=0)
    algorithm.learn(32)
    path = tmp_path_factory.mktemp("stock") / "agent.zip"
    algorithm.save(path)
    return path


def decisions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]


def test_it_drives_a_run_by_its_file_and_is_found_again(
    agent: Path, make_config: Make, remains: Callable[[Path], dict[str, Any]]
) -> None:
    whole = make_config("whole", agent={"name": str(agent)})
    folder, kept = Path(whole.run.dir), []

    def keep(name: str) -> None:
        if name == "folder-rename:after":
            kept.append(folder.parent / f"at-{len(kept)}" / "run")
            shutil.copytree(folder, kept[-1])

    storage.on_failpoint = keep
    try:
        summary = finetune(whole)
    finally:
        storage.on_failpoint = None
    assert summary["status"] == "finished"
    assert len(decisions(folder)) == 5
    assert len({json.dumps(record["mixture"]) for record in decisions(folder)}) > 1
    assert load_config(folder / "config.yaml").agent.name == str(agent)
    finetune(load_config(kept[0] / "config.yaml", [f"run.dir={kept[0]}"]), resume=True)
    assert remains(kept[0]) == remains(folder)


def test_the_word_and_its_options_say_the_same(agent: Path, make_config: Make) -> None:
    by_file = make_config("file", agent={"name": str(agent)}, training={"steps": 2})
    options = {"path": str(agent), "action": "logits"}
    by_word = make_config("word", agent={"name": "sb3", "options": options}, training={"steps": 2})
    finetune(by_file)
    finetune(by_word)
    first, second = (decisions(Path(one.run.dir)) for one in (by_file, by_word))
    assert [one["mixture"] for one in first] == [one["mixture"] for one in second]


def test_a_run_of_another_size_is_refused(tmp_path: Path, make_config: Make) -> None:
    env: Any = gym.make("mixgym/Mixture-v0", environment={"max_sources": 6, "max_strata": 4})
    PPO("MlpPolicy", env, device="cpu").save(tmp_path / "wide.zip")
    config = make_config(
        "strata", agent={"name": str(tmp_path / "wide.zip")}, data={"strata": 5, "max_length": 64}
    )
    with pytest.raises(MixgymError, match=r"max_sources, max_strata = \(6, 4\): the task has 2 so"):
        finetune(config)
