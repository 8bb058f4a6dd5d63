"""The example distribution works by word and installed, in the fast world and on text."""

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixgym.agents.registry import find_algorithm
from mixgym.envs import storage
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.plugins.registry import registries
from mixgym.envs.registration import make_mixture_env
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.training.train import train

Make = Callable[..., RunConfig]
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "plugin"
MODULE = "mixgym_example"
BY_WORD = {
    "reward": f"{MODULE}:median",
    "probe": f"{MODULE}:SPREAD",
    "rule": f"{MODULE}:BySpread",
    "algorithm": f"{MODULE}:FadingPPO",
}
DECLARED = {
    "reward": "median", "probe": "spread", "rule": "by_spread", "algorithm": "fading_ppo",
}  # fmt: skip
TINY = {
    "decisions": 32,
    "language_decisions": 5,
    "environments": 2,
    "evaluate_every": 32,
    "language_validations": 0,
    "options": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
    "policy": {"width": 8},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, installed into a folder without a network."""
    for tool in ("pip", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed, and nothing is fetched here")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "plugin")
    folder = tmp_path_factory.mktemp("installed")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *flags, str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def clean() -> Iterator[None]:
    """Forget what was found of the example, before and after."""

    def forget() -> None:
        sys.modules.pop(MODULE, None)
        for table in registries().values():
            table._found.clear()

    forget()
    yield
    forget()


@pytest.fixture(params=["by word", "installed"])
def words(
    request: pytest.FixtureRequest, clean: None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    by_word = request.param == "by word"
    monkeypatch.syspath_prepend(EXAMPLE if by_word else request.getfixturevalue("target"))
    return BY_WORD if by_word else DECLARED


def environment(words: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"reward": words["reward"], "probes": {words["probe"]: 1}, **more}


def decisions(folder: str | Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (Path(folder) / "decisions.jsonl").read_text().splitlines()
    ]


def test_what_it_declares_is_there() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = {
        name: value for group in project["entry-points"].values() for name, value in group.items()
    }
    assert points == {DECLARED[kind]: BY_WORD[kind] for kind in DECLARED}
    code = [
        line
        for line in (EXAMPLE / f"{MODULE}.py").read_text().splitlines()
        if line.strip() and not line.strip().startswith(('"""', "#"))
    ]
    assert len(code) <= 60


def test_in_the_fast_world(words: dict[str, str]) -> None:
    options = environment(words, observation="dict")
    single = make_mixture_env(
        training={"steps": 3, "interval": 1}, environment={**options, "tasks": "validation"}
    )
    single.reset(seed=3)
    info = single.step(np.zeros(single.action_space.shape or (), np.float32))[4]["decision"]
    assert info["reward"]["components"].keys() == {"median"}
    assert info["probes"].keys() == {words["probe"]}
    batch = CurvesVecEnv(3, [5, 6, 7], EnvironmentOptions(learner="curves", **options))
    batch.reset()
    paid = batch.step(np.zeros((3, *(batch.action_space.shape or ())), np.float32))[1]
    assert np.isfinite(paid).all()


def test_the_rule_in_the_fast_world(words: dict[str, str]) -> None:
    needs = find_algorithm(words["rule"]).needs({})
    assert needs.probes == {BY_WORD["probe"]: 2}
    options = EnvironmentOptions(
        learner="curves", action=needs.action, observation=needs.observation, probes=needs.probes
    )
    world = CurvesVecEnv(2, [5, 6], options)
    rule = find_algorithm(words["rule"]).load()(None, power=2.0)
    seen, actions = world.reset(), []
    for _ in range(3):
        actions.append(rule.predict(seen)[0])
        seen = world.step(actions[-1])[0]
    assert not np.array_equal(actions[0], actions[-1]), "the probe moved it"


@pytest.mark.usefixtures("few_tasks")
def test_the_algorithm_is_trained_drives_and_is_found_again(
    words: dict[str, str], make_config: Make
) -> None:
    section = environment(words)
    config = make_config("agent", train={**TINY, "algo": words["algorithm"]}, environment=section)
    summary = train(config)
    assert summary["algorithm"] == words["algorithm"]
    assert summary["parameters_changed"]
    kept = load_config(Path(config.run.dir) / "config.yaml")
    assert kept.train.algo == words["algorithm"]
    assert (kept.environment.reward, *kept.environment.probes) == (words["reward"], words["probe"])
    driven = make_config("driven", agent={"name": config.run.dir}, environment=section)
    finetune(driven)
    assert all(
        one["reward"]["components"].keys() == {"median"} for one in decisions(driven.run.dir)
    )


def test_on_text_and_resumed(
    words: dict[str, str], make_config: Make, remains: Callable[[Path], dict[str, Any]]
) -> None:
    whole = make_config(
        "whole",
        agent={"name": words["rule"], "options": {"power": 2.0}},
        environment=environment(words),
    )
    folder, kept = Path(whole.run.dir), []

    def keep(name: str) -> None:
        if name == "folder-rename:after":
            kept.append(folder.parent / f"at-{len(kept)}" / "run")
            shutil.copytree(folder, kept[-1])

    storage.on_failpoint = keep
    try:
        finetune(whole)
    finally:
        storage.on_failpoint = None
    records = decisions(folder)
    assert records[0]["probes"].keys() == {words["probe"]}
    assert records[1]["probes"].keys() == {words["probe"], BY_WORD["probe"]}
    assert records[-1]["cost"]["probe_tokens"] > 0
    finetune(load_config(kept[0] / "config.yaml", [f"run.dir={kept[0]}"]), resume=True)
    assert remains(kept[0]) == remains(folder)


@pytest.mark.slow
def test_the_algorithm_is_trained_on_text(words: dict[str, str], make_config: Make) -> None:
    options = {**TINY, "algo": words["algorithm"], "stages": ["causal_lm"]}
    summary = train(make_config("agent", train=options, environment=environment(words)))
    assert summary["stages"][0]["decisions"] >= 5


def test_lists_say_where_it_comes_from(
    clean: None, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(target)
    for what, kind in (("rewards", "reward"), ("probes", "probe"), ("algorithms", "rule")):
        answer = CliRunner().invoke(app, ["list", what, "--json"])
        found = json.loads(answer.stdout)[DECLARED[kind]]
        assert found == {
            "origin": "mixgym-example 0.1.0",
            "summary": f"plug-in {BY_WORD[kind]}",
        }
    assert MODULE not in sys.modules, "a list imports no plug-in"
    answer = CliRunner().invoke(app, ["list", "options", "by_spread"])
    assert "agent.options.power  1.0  that the spread is raised to" in answer.stdout


def test_what_is_not_there_is_one_sentence(clean: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'environment\.reward: "median" will not do: unknown'):
        load_config(None, ["environment.reward=median"])
    with pytest.raises(ConfigError, match="Python finds no module 'mixgym_example'; install it"):
        load_config(None, [f"environment.reward={MODULE}:median"])
    with pytest.raises(ConfigError, match=r"agent\.name=mixgym_example:BySpread: Python finds"):
        find_agent(RunConfig.model_validate({"agent": {"name": BY_WORD["rule"]}}).agent)


REGISTERS = f"""
import {MODULE}
from mixgym.envs.rewards import REWARDS

REWARDS.register("solar_median", {MODULE}.median)
"""


def test_modules_that_register_are_kept_for_a_resume(
    clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "solar_registers.py").write_text(REGISTERS)
    code = """
from pathlib import Path
from mixgym.trainer.config import dump_config, load_config

named = load_config(None, ["plugins=[solar_registers]", "environment.reward=solar_median"])
Path("named.yaml").write_text(dump_config(named))
found = load_config(None, ["environment.reward=solar_median"])
Path("found.yaml").write_text(dump_config(found))
assert load_config(None, []).plugins == ()
"""
    again = """
from mixgym.trainer.config import load_config

for name in ("named", "found"):
    config = load_config(f"{name}.yaml")
    print(*config.plugins, config.environment.reward)
"""
    path = {"PYTHONPATH": ":".join([str(EXAMPLE), str(tmp_path), *sys.path])}

    def run(text: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", text],
            check=True, env=path, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    run(code)
    assert run(again) == ["solar_registers solar_median"] * 2
