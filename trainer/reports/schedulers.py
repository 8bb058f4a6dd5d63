"""Everything that can schedule the fast world, by name: registered rules, and trained agents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixgym.agents.registry import ALGORITHMS
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import CURVES
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.training.validation import Predict

_CONFIGURED = ("fixed", "scripted", "sb3")
"""Those that know sources by name, or a size: tasks that they were not made for are not theirs."""

_AWARE = ("hbo", "scalebio")
"""Algorithms, other than mixers, that read gradients or losses weighted by the target; trained
agents do through their reward."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "exp3, paper": ("exp3", {"variant": "paper"}),
    "exp3, released": ("exp3", {"variant": "released"}),
    "exp3, as measured": ("exp3", {"noise_aware": False}),
    "ucb, as measured": ("ucb", {"noise_aware": False}),
    "ado, as measured": ("ado", {"noise_aware": False}),
    "aioli, as measured": ("aioli", {"noise_aware": False}),
    "loss_proportional, targets": ("loss_proportional", {"targets": True}),
    "doremi, targets": ("doremi", {"targets": True}),
    "doremi, tokens": ("doremi", {"clip": "tokens"}),
    "rho_loss, all sources": ("rho_loss", {"targets": False}),
    "doge, universal": ("doge", {"mode": "universal"}),
    "mos, difficulty": ("mos", {"reward": "difficulty"}),
}
"""Other forms of the same algorithm that a table shows besides its defaults."""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler that is ready to act in the fast world.

    Attributes:
        predict: ``(observation, state, episode_start, deterministic)``.
        options: the environment that it needs.
        target_aware: whether it pays attention to what counts in evaluation.
        probes: what it measures, and how often: probe -> period in decisions.
        reference: whether it needs a reference model.
    """

    predict: Predict
    options: EnvironmentOptions
    target_aware: bool
    probes: Mapping[str, int]
    reference: bool


def schedulers(
    runs: Sequence[str | Path] = (), only: Sequence[str] | None = None
) -> dict[str, Scheduler]:
    """All of them by name, the reference ``uniform`` first.

    Args:
        runs: folders of trained agents.
        only: names of rules (registered, or in :data:`VARIANTS`) instead of all; ``uniform`` is
            always there.

    Raises:
        ConfigError: for an unknown name, one that must be trained or configured, or a folder
            without an agent.
    """
    ready: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in _ready()}
    everything = ready | VARIANTS
    wanted = everything if only is None else {"uniform": ("uniform", {})}
    for name in only or ():
        if name not in everything and not ALGORITHMS.knows(name):
            raise ConfigError(f"{name}: no such rule (known: {', '.join(everything)})")
        wanted[name] = everything.get(name, (name, {}))
    found = {name: _scheduler(own, options) for name, (own, options) in wanted.items()}
    return found | {str(run): _scheduler(str(run), {}) for run in runs}


def _ready() -> list[str]:
    """Registered algorithms that act without training and without names of sources."""
    return [
        name
        for name, algorithm in ALGORITHMS.items()
        if not algorithm.is_trained and name not in _CONFIGURED
    ]


def _scheduler(name: str, given: dict[str, Any]) -> Scheduler:
    kind = find_agent(AgentOptions(name=name, options=given))
    needs = kind.requires
    options = environment_for(needs, RunConfig(), learner=CURVES).environment
    agent = kind.make(CurvesVecEnv(1, range(1), options), ())
    aware = bool(getattr(agent, "target_aware", name in _AWARE or Path(name).is_dir()))
    return Scheduler(agent.predict, options, aware, needs.probes, needs.reference)
