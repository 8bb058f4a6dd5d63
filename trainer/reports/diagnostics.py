"""How ``mixgym doctor`` gets at its numbers: episodes on validation tasks, and a run's records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixgym.agents.actor import Actor
from mixgym.agents.policies.composed import load_agent, policy_folders
from mixgym.agents.policies.export import CARD, acting_weights
from mixgym.agents.rules import Uniform
from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.core import DECISIONS
from mixgym.envs.curves.task import MAX_SOURCES, MAX_STRATA
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.learners.kinds import CURVES
from mixgym.envs.levels.batch_local import present_rows, rows_of
from mixgym.envs.spaces.observations import flat_space
from mixgym.trainer.config import RunConfig
from mixgym.trainer.reports import action_statistics
from mixgym.trainer.reports.controls import controlled_score
from mixgym.trainer.reports.findings import (
    UNKNOWN,
    Finding,
    judge_attention,
    judge_bounds,
    judge_gain,
    judge_harm,
    judge_movement,
    judge_order,
    judge_pay,
    judge_updates,
    judge_values,
)
from mixgym.trainer.runs.folder import RunFolder
from mixgym.trainer.training.learner_group import LearnerGroup
from mixgym.trainer.training.supervisor import AGENT, LAST, TWIN, score_agent, score_rule
from mixgym.trainer.training.train import OTHER
from mixgym.trainer.training.training_envs import Watched, trained_in
from mixgym.trainer.training.validation import VALIDATION_SEED

TASKS = 48
SHAPE = (MAX_SOURCES, MAX_STRATA)
_CONSTANT = ("uniform", "proportional", "temperature", "fixed")
"""Rules whose mixture does not move, by design."""


@dataclass(frozen=True)
class Episode:
    """One episode of several tasks under an agent.

    Attributes:
        seen: float32[T, n, size], flat observations.
        actions: [T, n, ...].
        rewards: float64[T, n].
        local: float64[T, n, K], NaN for absent or unmeasured sources.
    """

    seen: NDArray[np.float32]
    actions: NDArray[Any]
    rewards: FloatArray
    local: FloatArray


class _Place:
    """A world that is only looked at."""

    def __init__(self, config: RunConfig) -> None:
        tasks = config.train.tasks("validation")[:TASKS]
        options = trained_in(config, CURVES).environment
        inner = CurvesVecEnv(len(tasks), tasks, options, seed=VALIDATION_SEED, in_order=True)
        self.env = Watched(inner)
        self.episode = DECISIONS

    def save(self, folder: Path) -> None:
        """Nothing: it is never continued."""

    def load(self, folder: Path) -> None:
        """Nothing: it is never continued."""


def play(agent: Actor, env: Any) -> Episode:
    """One episode of every task."""
    seen, actions, rewards, local = [], [], [], []
    observation, state = env.reset(), None
    start = np.ones(env.num_envs, np.bool_)
    for _ in range(DECISIONS):
        action, state = agent.predict(observation, state, start, True)
        seen.append(observation)
        actions.append(action)
        observation, paid, start, infos = env.step(action)
        rewards.append(np.asarray(paid, np.float64))
        local.append(np.stack([_local(info["decision"], SHAPE[0]) for info in infos]))
    return Episode(np.stack(seen), np.stack(actions), np.stack(rewards), np.stack(local))


def _local(record: Any, sources: int) -> FloatArray:
    """float64[sources], rewards of the sources of one record."""
    paid = record["reward"]["local"]
    values = np.full(sources, np.nan)
    for k, name in enumerate(record["mixture"]):
        values[k] = paid.get(name, np.nan)
    return values


# --- a training -----------------------------------------------------------------------------------


def examine_training(run: RunFolder) -> list[Finding]:
    """All findings on an agent and its training."""
    config = run.config
    torch.set_num_threads(config.model.threads)
    agent, twin = (load_agent(run.path / name, shape=SHAPE) for name in (AGENT, TWIN))
    place = _Place(config)
    episode = play(agent, place.env)
    seen = episode.seen.reshape(-1, episode.seen.shape[-1])
    kind, reach = config.environment.action, config.environment.reach
    # the best agent may be the twin itself, however far the training went
    learnt = run.path / (LAST if (run.path / LAST).is_dir() else AGENT)
    mine, controls = controlled_score(
        agent.predict, trained_in(config, CURVES).environment, config.train.tasks("validation")
    )
    gap = mine.mean - score_agent(run.path / TWIN, config).mean
    to_uniform = mine.mean - score_rule(Uniform(), config).mean
    summary = run.read_summary() or {}
    return [
        judge_updates(summary.get("stages", [])),
        judge_movement(
            _largest_change(run.path / TWIN, learnt),
            action_statistics.moved(
                _shares(load_agent(learnt, shape=SHAPE), seen, SHAPE, kind, reach),
                _shares(twin, seen, SHAPE, kind, reach),
            ),
        ),
        attention(agent, seen, SHAPE, kind, reach),
        judge_gain("beats its twin", gap.tolist(), "its frozen twin"),
        judge_harm("beats uniform", to_uniform.tolist(), "the uniform mixture"),
        judge_order(controls.held.tolist(), controls.backwards.tolist()),
        judge_pay(action_statistics.spread(episode.local.reshape(-1, SHAPE[0]))),
        bounds(episode.actions.reshape(len(seen), -1), seen, SHAPE, kind),
        judge_values(_explained_values(run, place, episode)),
    ]


def _largest_change(before: Path, after: Path) -> float:
    """The largest change of a parameter that actions depend on, over all parts of an agent."""
    old, new = policy_folders(before), policy_folders(after)
    return max(
        float((acting_weights(new[place])[name] - value).abs().max())
        for place, folder in old.items()
        if place in new
        for name, value in acting_weights(folder).items()
        if value.is_floating_point() and value.numel()
    )


def attention(
    agent: Actor, seen: NDArray[np.float32], shape: action_statistics.Shape, kind: str, reach: float
) -> Finding:
    """Whether actions change if observations are shuffled or made constant."""
    own = _shares(agent, seen, shape, kind, reach)
    found = [
        action_statistics.moved(own, _shares(agent, other, shape, kind, reach, masks=seen))
        for other in (
            action_statistics.shuffled(seen, shape, np.random.default_rng(0)),
            action_statistics.constant(seen, shape),
        )
    ]
    return judge_attention(*found)


def _shares(
    agent: Actor,
    seen: NDArray[np.float32],
    shape: action_statistics.Shape,
    kind: str,
    reach: float,
    masks: NDArray[np.float32] | None = None,
) -> list[FloatArray]:
    """What an agent does with observations, each taken for the first of an episode."""
    action, _ = agent.predict(seen, None, np.ones(len(seen), np.bool_), True)
    return action_statistics.shares(action, seen if masks is None else masks, shape, kind, reach)


def bounds(
    actions: NDArray[Any], seen: NDArray[np.float32], shape: action_statistics.Shape, kind: str
) -> Finding:
    """Whether logits are at their bounds."""
    if kind not in ("logits", "delta"):
        return Finding("bounds", UNKNOWN, f"actions are {kind}, which have no logits")
    return judge_bounds(*action_statistics.at_bound(actions, seen, shape))


def _explained_values(run: RunFolder, place: Any, episode: Episode) -> dict[str, float]:
    """By level, how much of the variance of returns the critics of the best agent explain."""
    other = run.path / OTHER
    group = LearnerGroup(run.config, place, CURVES, other if other.is_dir() else None)
    group.make(run.path / AGENT)
    return {
        level: _explained(algorithm, level, run.config, episode)
        for level, algorithm in group.learners.items()
    }


def _explained(algorithm: Any, level: str, config: RunConfig, episode: Episode) -> float:
    period = config.train.period if level == "global" else 1
    discount = float(getattr(algorithm, "gamma", 1.0)) ** (1.0 / period)
    rewards = episode.rewards
    actions = episode.actions
    if level == "local":
        team = config.train.team
        rewards = (1 - team) * np.nan_to_num(episode.local) + team * rewards[..., None]
        actions = actions[..., SHAPE[0] :]
    elif level == "global":
        actions = actions[..., : SHAPE[0]]
    found = action_statistics.returns(rewards, discount)[::period].ravel()
    flat = episode.seen[::period].reshape(-1, episode.seen.shape[-1])
    seen = rows_of(flat, SHAPE) if level == "local" else flat
    acted = actions[::period].reshape(len(seen), -1)
    values = critic_values(algorithm, seen, acted)
    if values is None:
        return float("nan")
    kept = present_rows(seen, SHAPE[1]) if level == "local" else np.ones(len(seen), np.bool_)
    return action_statistics.explained(values[kept], found[kept])


def critic_values(
    algorithm: Any, seen: NDArray[np.float32], actions: NDArray[Any]
) -> FloatArray | None:
    """What an algorithm's critic expects, float64[n]; None if there is none that can be asked."""
    policy = algorithm.policy
    policy.set_training_mode(False)
    observed, acted = torch.from_numpy(seen), torch.from_numpy(np.asarray(actions, np.float32))
    with torch.no_grad():
        if getattr(policy, "critic", None) is not None:
            answer = policy.critic(observed, acted)
        elif hasattr(policy, "q_net"):
            answer = policy.q_net(observed).max(1).values
        elif hasattr(policy, "quantile_net"):
            answer = policy.quantile_net(observed).mean(1).max(1).values
        elif hasattr(policy, "predict_values") and not hasattr(algorithm, "_last_lstm_states"):
            answer = policy.predict_values(observed)
        else:
            return None
    # several critics, or several quantiles, are averaged
    whole = torch.cat(answer, 1) if isinstance(answer, tuple) else answer
    return whole.reshape(len(seen), -1).double().mean(1).numpy()


# --- a fine-tuning run ----------------------------------------------------------------------------


def examine_finetuning(run: RunFolder) -> list[Finding]:
    """What the records of a fine-tuning run tell of who drove it."""
    records = run.read_decisions()
    name = run.config.agent.name
    where = Path(name) / AGENT
    folder = where if (where / CARD).is_file() else Path(name)
    driven = (folder / CARD).is_file()
    return [
        _steadiness(records, name),
        _attention_of(folder, records)
        if driven
        else Finding("observes", UNKNOWN, f"{name} is not a trained policy that could be asked"),
        Finding("beats its twin", UNKNOWN, "one run cannot tell; see `mixgym compare`"),
        judge_pay(action_statistics.spread(_all_local(records))),
        _bounds_of(folder, records)
        if driven
        else Finding("bounds", UNKNOWN, f"{name} does not act by logits"),
        Finding("values", UNKNOWN, "values are asked for in the training; examine that run"),
    ]


def _steadiness(records: list[dict[str, Any]], name: str) -> Finding:
    """Whether the mixture moved in the run."""
    mixtures = np.array([[*record["mixture"].values()] for record in records])
    strata = np.array([np.concatenate([*record["strata"].values()]) for record in records])
    per_source = max(len(records[0]["strata"]), 1)
    away = max(
        float(0.5 * np.abs(mixtures - mixtures[0]).sum(-1).max()),
        float(0.5 * np.abs(strata - strata[0]).sum(-1).max() / per_source),
    )
    numbers = {"largest_move": away}
    if away >= 0.001:
        words = f"up to {100 * away:.1f}% of the weight lay elsewhere than at the first decision"
        return Finding("moves", "sound", words, numbers)
    if name in _CONSTANT:
        return Finding("moves", UNKNOWN, f"{name} keeps one mixture by design", numbers)
    words = (
        f"the mixture is that of the first decision throughout; {name} does not react to the run"
    )
    return Finding("moves", "failed", words, numbers)


def _recorded(records: list[dict[str, Any]]) -> tuple[NDArray[np.float32], action_statistics.Shape]:
    """Flat observations of a run, and the shape that they are for."""
    seen = np.array([record["observation"] for record in records], np.float32)
    entries = len(records[0]["action"])
    for sources in range(1, entries + 1):
        strata, left = divmod(entries - sources, sources)
        shape = (sources, strata)
        if left == 0 and strata and seen.shape[1:] == flat_space(shape).shape:
            return seen, shape
    # nudges are one number: the sizes come from the records themselves
    first = records[0]["strata"]
    return seen, (len(first), max(len(values) for values in first.values()))


def _attention_of(folder: Path, records: list[dict[str, Any]]) -> Finding:
    seen, shape = _recorded(records)
    agent = load_agent(folder, shape=shape)
    kind, reach = _acting(folder)
    return attention(agent, seen, shape, kind, reach)


def _bounds_of(folder: Path, records: list[dict[str, Any]]) -> Finding:
    seen, shape = _recorded(records)
    actions = np.array([record["action"] for record in records])
    return bounds(actions, seen, shape, _acting(folder)[0])


def _acting(folder: Path) -> tuple[str, float]:
    """Kind of actions, and reach of logits, of an exported agent."""
    from mixgym.agents.policies.export import read_card

    card = read_card(folder)
    return str(card.get("action", "logits")), float(card.get("reach", 0.9))


def _all_local(records: list[dict[str, Any]]) -> FloatArray:
    """float64[decisions, K], what sources were paid."""
    return np.stack([_local(record, len(record["mixture"])) for record in records])
