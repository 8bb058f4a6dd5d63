"""The recipes of CONTRIBUTING.md run as they stand, and what they add works like its kind."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mixgym.agents import registry
from mixgym.envs import probes, rewards
from mixgym.envs.build import build_environment
from mixgym.envs.curves import probes as curve_probes
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import PackingError
from mixgym.envs.learners.probes import losses
from mixgym.envs.options import EnvironmentOptions, WorldOptions
from mixgym.envs.packing import packers
from mixgym.envs.registration import make_mixture_env
from mixgym.envs.sources.rows import formats
from mixgym.trainer.config import AgentOptions
from mixgym.trainer.finetuning.assembly import find_agent

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
REGISTRIES: tuple[Any, ...] = (
    registry.ALGORITHMS, rewards.REWARDS, probes.PROBES, losses.CELL_VALUES,
    curve_probes.STRATUM_VALUES, packers.PACKERS, formats.FORMATS,
)  # fmt: skip
SMALL = {
    "sources": {"addition": {"embedded": "addition", "rows": 60}, "noise": {"embedded": "noise"}},
    "data": {"max_length": 64, "strata": 2},
    "training": {"steps": 3, "interval": 1, "packs": 2},
}


def recipes() -> dict[str, str]:
    """Title -> code, of the recipes that have any."""
    sections = re.split(r"^### How to add ", CONTRIBUTING.read_text("utf-8"), flags=re.MULTILINE)
    found = {}
    for section in sections[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        assert len(blocks) <= 1, section.splitlines()[0]
        if blocks:
            found[section.splitlines()[0]] = blocks[0]
    return found


@pytest.fixture
def follow() -> Iterator[Callable[[str], ModuleType]]:
    """Runs a recipe as a module of its own; registries are as before afterwards."""
    before = [dict(one) for one in REGISTRIES]
    names = []

    def run(title: str) -> ModuleType:
        module = ModuleType(f"recipe_of_{title.replace(' ', '_')}")
        sys.modules[module.__name__] = module
        names.append(module.__name__)
        exec(compile(recipes()[title], f"CONTRIBUTING.md: {title}", "exec"), module.__dict__)
        return module

    yield run
    for one, entries in zip(REGISTRIES, before, strict=True):
        one.clear()
        one.update(entries)
    for name in names:
        del sys.modules[name]


def test_every_recipe_with_code_is_tested_here() -> None:
    assert set(recipes()) == {"a reward", "a probe", "a rule", "a row format", "a packer"}


def test_the_reward(follow: Callable[[str], ModuleType]) -> None:
    follow("a reward")
    single = make_mixture_env(
        training={"steps": 4, "interval": 1}, environment={"reward": "best", "tasks": "validation"}
    )
    start = np.array([v for v in single.reset(seed=3)[1]["start"].values()])
    action = np.zeros(single.action_space.shape or (), np.float32)
    total, done = 0.0, False
    while not done:
        _, reward, done, _, info = single.step(action)
        total += reward
    end = list(info["decision"]["loss"]["reward"].values())
    targets = single.world.targets > 0
    assert total == pytest.approx(start[targets].min() - np.array(end)[targets].min(), abs=1e-9)
    batch = CurvesVecEnv(3, [5, 6, 7], EnvironmentOptions(learner="curves", reward="best"))
    batch.reset()
    shape = batch.action_space.shape or ()
    rewards_, infos = batch.step(np.zeros((3, *shape), np.float32))[1::2]
    assert np.isfinite(rewards_).all()
    assert [info["decision"]["reward"]["components"]["best"] for info in infos] == pytest.approx(
        rewards_.tolist()
    )


def test_the_probe(follow: Callable[[str], ModuleType]) -> None:
    follow("a probe")
    environment = {"probes": {"loss_spread": 1, "loss": 1}, "observation": "dict"}
    curves = make_mixture_env(training={"steps": 3, "interval": 1}, environment=environment)
    curves.reset(seed=0)
    found = curves.step(np.zeros(curves.action_space.shape or (), np.float32))[4]["decision"]
    ratios = [
        np.array(spread, float) / np.array(found["probes"]["loss"][name], float)
        for name, spread in found["probes"]["loss_spread"].items()
    ]
    assert np.mean(ratios) == pytest.approx(0.3, abs=0.1), "0.3 of the loss, with a probe's noise"
    language = build_environment(
        WorldOptions.model_validate({**SMALL, "environment": {**environment, "probe_rows": 3}})
    )
    language.reset(seed=0)
    found = language.step(np.zeros(language.action_space.shape or (), np.float32))[4]["decision"]
    spreads = [v for row in found["probes"]["loss_spread"].values() for v in row if v is not None]
    assert len(spreads) == 4
    assert min(spreads) > 0


def test_the_rule(follow: Callable[[str], ModuleType]) -> None:
    follow("a rule")
    agent = find_agent(AgentOptions(name="easy_first")).make(None, ())
    env = make_mixture_env(
        training={"steps": 4, "interval": 1},
        environment={"action": "weights", "observation": "dict"},
    )
    observation, _ = env.reset(seed=1)
    weights = []
    for _ in range(4):
        action, _ = agent.predict(observation)
        observation, _, _, _, info = env.step(action)
        weights.append(next(iter(info["decision"]["strata"].values())))
    groups = len(weights[0])
    assert sum(weights[0][groups // 2 :]) == pytest.approx(0.0, abs=1e-6)
    assert sum(weights[-1][groups // 2 :]) > 0.1


def test_the_format(follow: Callable[[str], ModuleType], tmp_path: Path) -> None:
    follow("a row format")
    path = tmp_path / "articles.jsonl"
    rows = [f'{{"title": "about {n}", "body": "text {n}"}}' for n in range(200)]
    path.write_text("\n".join(rows))
    options = {**SMALL, "sources": {"articles": {"path": str(path)}}}
    world = build_environment(WorldOptions.model_validate(options)).world
    assert world.names == ("articles",)
    assert world.cell_size.sum() > 0


def test_the_packer(follow: Callable[[str], ModuleType]) -> None:
    follow("a packer")
    pack = packers.find_packer("best_fit_shuffled").pack
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 65, 500)
    packing = pack(lengths, 64, generator)
    assert sorted(packing.documents.tolist()) == list(range(500))
    assert packing.sums(lengths).max() <= 64
    assert len(packing) <= 2 * -(-int(lengths.sum()) // 64)
    with pytest.raises(PackingError, match="document 1 has 11 tokens and a pack holds 10"):
        pack(np.array([5, 11]), 10, generator)
    options = {**SMALL, "data": {**SMALL["data"], "packing": {"packer": "best_fit_shuffled"}}}
    env = build_environment(WorldOptions.model_validate(options))
    env.reset(seed=0)
    assert "decision" in env.step(np.zeros(env.action_space.shape or (), np.float32))[4]
