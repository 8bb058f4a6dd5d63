"""``mixgym plan``: what a run will read, repeat and cost. Nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import IntArray
from mixgym.envs.build import load_corpus, row_world
from mixgym.envs.environment import MixtureEnv
from mixgym.envs.interval_plan import IntervalPlan
from mixgym.envs.learners.base import Evaluation, ProbeResult, StepRule, TrainReport
from mixgym.envs.learners.kinds import need_rows
from mixgym.envs.learners.probes.probe_rows import baseline_cost, probe_cost
from mixgym.envs.measuring.probe_book import wanted_probes
from mixgym.envs.options import SPLITS
from mixgym.envs.probes import BACKWARD
from mixgym.envs.sources.source import Source, warnings_of
from mixgym.envs.spaces.signals import probe_shape
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for
from mixgym.trainer.finetuning.assembly import find_agent
from mixgym.trainer.reports.dry_run_text import plan_details, plan_text
from mixgym.trainer.reports.packing_report import packing_report
from mixgym.trainer.runs.tables import show

_READ_WARNING = 8.0  # tokens read per supervised token, above which a source is pointed out
_MEASURE_WARNING = 0.1  # share of all compute that measuring should stay below


def plan_command(
    config: RunConfig, *, processes: int = 1, details: bool = False, json_output: bool = False
) -> dict[str, Any]:
    """Plan, and say it plainly unless JSON is wanted; ``details`` adds figures for experts."""
    from mixgym.trainer.finetuning.finetune import quiet_transformers

    quiet_transformers()
    report = make_plan(config, processes)
    if not json_output:
        show(*plan_text(report))
        if details:
            show(*plan_details(report))
    return report


def make_plan(config: RunConfig, processes: int = 1) -> dict[str, Any]:
    """The report: sources, the run as the agent would drive it, and what it costs.

    The data plane is really run, for the whole budget, under the agent's mixture (a rule) or the
    prior (an agent that has to be trained), with a learner that does nothing: epochs and shares
    are those of the run.

    Args:
        config: the run.
        processes: that will train it.

    Raises:
        MixgymError: for whatever ``finetune`` would refuse in the sources or the configuration.
    """
    config = environment_for(find_agent(config.agent).requires, config)
    need_rows(config.environment.learner, "to plan")
    corpus = load_corpus(config, dry=True)
    rehearsal = _rehearse(config, corpus.sources, processes)
    sources = {
        source.name: _source_report(source, rehearsal.epochs[k], rehearsal.supervised[k])
        for k, source in enumerate(corpus.sources)
    }
    report = {
        "sources": sources,
        "run": {
            "agent": config.agent.name,
            "model": config.model.name,
            "learning_rate": config.training.learning_rate,
            "budget": config.training.budget,
            "budget_unit": config.training.budget_unit,
            "steps": rehearsal.steps,
            "decisions": rehearsal.decisions,
            "tokens": rehearsal.tokens,
            "supervised_tokens": int(rehearsal.supervised.sum()),
            "fill": rehearsal.fill,
        },
        "cost": {**_costs(config, corpus.sources, rehearsal), "grading_tokens": corpus.graded},
        "memory": _memory(config),
    }
    packing = packing_report(config, corpus.sources, rehearsal.pools, processes)
    report["packing"] = packing
    told = warnings_of(corpus.sources, config.data.held_out_rows)
    report["warnings"] = [*told, *_warnings(report), *packing["warnings"]]
    return report


@dataclass
class _Rehearsal:
    steps: int
    decisions: int
    tokens: int
    probed: int
    fill: float
    epochs: "np.ndarray[Any, np.dtype[np.float64]]"
    supervised: "np.ndarray[Any, np.dtype[np.int64]]"
    probes: dict[str, int]
    pools: list[IntArray]  # lengths of the rows of every interval


class _IdleLearner:
    """Trains nothing and measures a constant, so that rules can be rehearsed.

    Probes cost what they will.
    """

    def __init__(self, config: RunConfig, sources: Sequence[Source]) -> None:
        self._shape = (len(sources), sources[0].n_strata)
        self._rows = (sources, config.environment.probe_rows, config.seed)
        self.pools: list[IntArray] = []

    def reset(self) -> None:
        """Nothing to put back."""

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """Nothing is trained; what would have been is noted."""
        lengths = [pack.lengths for step in plan.steps for pack in step]
        self.pools.append(np.concatenate([np.zeros(0, np.int64), *lengths]))
        loss = plan.supervised.astype(np.float64)
        return TrainReport(loss, plan.supervised, plan.tokens, plan.rows)

    def evaluate(self, split: str) -> Evaluation:
        """One nat per token everywhere."""
        one = np.ones(self._shape, np.int64)
        unknown = np.full(self._shape, np.nan)
        return Evaluation(
            np.ones(self._shape), one, tokens=0, rows=one, error=unknown, source_error=unknown[:, 0]
        )

    def begin_probes(self, names: Sequence[str]) -> int:
        """The cost of what they will be compared with."""
        return baseline_cost(names, *self._rows)

    def probe(self, name: str) -> ProbeResult:
        """The same everywhere, at the cost of the probe."""
        return ProbeResult(np.ones(probe_shape(name, self._shape)), probe_cost(name, *self._rows))

    def snapshot(self) -> dict[str, Any]:
        """No state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """No state."""

    def fork(self) -> "_IdleLearner":
        """No state."""
        return self

    def save(self, folder: Path) -> None:
        """No state."""

    def load(self, folder: Path) -> None:
        """No state."""


def _rehearse(config: RunConfig, sources: Sequence[Source], processes: int) -> _Rehearsal:
    kind = find_agent(config.agent)
    suits = environment_for(kind.requires, config)
    learner = _IdleLearner(suits, sources)
    world = row_world(config, sources, learner, processes)
    names = world.names
    env = MixtureEnv(world, suits.environment, config.training)
    agent = kind.make(env, names)
    observation, _ = env.reset(seed=config.seed)
    state, done, supervised, fills = None, False, np.zeros(len(names), np.int64), []
    while not done:
        action, state = agent.predict(observation, state)
        observation, _, done, _, info = env.step(action)
        supervised += np.array(env.last_supervised)
        fills.append(info["decision"]["packing"]["fill"])
    epochs = np.array([info["decision"]["epochs"][name] for name in names])
    used = env.progress
    return _Rehearsal(
        used.steps,
        used.decisions,
        used.tokens,
        used.probed,
        float(np.mean(fills)),
        epochs,
        supervised,
        wanted_probes(suits.environment),
        learner.pools,
    )


def _source_report(source: Source, epochs: float, supervised: int) -> dict[str, Any]:
    train = source.splits["train"]
    ratio = float(train.lengths.sum() / max(int(train.supervised.sum()), 1))
    strata = [
        {
            "rows": int((mine := source.strata["train"] == g).sum()),
            "supervised_tokens": int(train.supervised[mine].sum()),
            "longest": int(train.lengths[mine].max(initial=0)),
        }
        for g in range(source.n_strata)
    ]
    return {
        "origin": source.report.origin,
        "format": source.report.row_format,
        "target": source.target,
        "rows": {split: len(rows) for split, rows in source.splits.items()},
        "tokens": int(train.lengths.sum()),
        "supervised_tokens": int(train.supervised.sum()),
        "held_out_supervised_tokens": {
            split: int(source.splits[split].supervised.sum()) for split in SPLITS[1:]
        },
        "tokens_per_supervised_token": ratio,
        "expected_epochs": float(epochs),
        "expected_supervised_tokens": int(supervised),
        "strata": strata,
        "counts": dict(source.report.counts),
    }


def _costs(config: RunConfig, sources: Sequence[Source], rehearsal: _Rehearsal) -> dict[str, Any]:
    """Tokens read by every measurement, and its share of all compute in forward passes."""
    read = {
        split: sum(int(source.splits[split].lengths.sum()) for source in sources)
        for split in ("reward", "test")
    }
    progress = read["reward"] * (rehearsal.decisions + 1)
    if config.environment.reference is not None:
        progress += read["reward"]
    factor = _step_factor(config)
    train = BACKWARD * rehearsal.tokens * factor
    total = train + progress + rehearsal.probed + 2 * read["test"]
    return {
        "reward_evaluation_tokens": read["reward"],
        "reward_evaluations": rehearsal.decisions + 1,
        "measure_tokens": progress,
        "test_evaluation_tokens": read["test"],
        "test_evaluations": 2,
        "step_factor": factor,
        "probes": rehearsal.probes,
        "probe_tokens": rehearsal.probed,
        "measured_share": (progress + rehearsal.probed + 2 * read["test"]) / total,
        "measured_share_of_decisions": progress / (train + progress + rehearsal.probed),
        "probed_share_of_decisions": rehearsal.probed / (train + progress + rehearsal.probed),
    }


def _step_factor(config: RunConfig) -> float:
    """Compute of a step under the step rule over that of a plain one."""
    if config.environment.step_rule == "plain":
        return 1.0
    from mixgym.envs.bilevel.two_model_estimators import make_estimator

    packs = config.training.packs
    return make_estimator(config.bilevel).cost((config.bilevel.validation_packs or packs) / packs)


def _memory(config: RunConfig) -> dict[str, Any]:
    """Bytes of weights, gradients and AdamW's state, and of the largest logits at most."""
    parameters, vocabulary = _model_size(config)
    tokens = config.training.packs * config.data.max_length / config.training.accumulation
    return {
        "parameters": parameters,
        "weights_gradients_optimizer_bytes": 16 * parameters,
        "largest_logits_bytes": int(2 * 4 * tokens * vocabulary),
    }


def _model_size(config: RunConfig) -> tuple[int, int]:
    from mixgym.envs.learners.models.small_models import PRESETS

    if config.model.name in PRESETS:
        preset = PRESETS[config.model.name]
        return preset.parameters, preset.vocabulary
    from mixgym.envs.learners.models.loading import describe

    return describe(config.model)


def _warnings(report: dict[str, Any]) -> list[str]:
    found = [
        f"{name}: {row['tokens_per_supervised_token']:.1f} tokens are read per supervised token; "
        "long prompts cost compute that ratios in supervised tokens do not show"
        for name, row in report["sources"].items()
        if row["tokens_per_supervised_token"] > _READ_WARNING
    ]
    cost = report["cost"]
    if cost["probed_share_of_decisions"] > _MEASURE_WARNING:
        found.append(
            f"probes take {100 * cost['probed_share_of_decisions']:.0f}% of the compute: "
            "raise their periods (environment.probes), or lower environment.probe_rows"
        )
    share = cost["measured_share_of_decisions"]
    if share > _MEASURE_WARNING:
        found.append(
            f"measuring takes {100 * share:.0f}% of the compute: "
            "raise training.interval, or lower data.held_out_tokens and data.held_out_rows"
        )
    return found
