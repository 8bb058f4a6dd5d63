"""What all runs of a study share: where they start, their rows, and how they are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.build import build_environment
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import Evaluation
from mixgym.envs.learners.batching import RowBatch, make_batch
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.kinds import need_rows
from mixgym.envs.learners.models.loading import load_model
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.envs.rewards import target_mean
from mixgym.envs.spaces.mixture import Mixture
from mixgym.trainer.config import RunConfig
from mixgym.trainer.orders.plane import (
    Batches,
    Kind,
    OrderedPlane,
    Rows,
    all_rows,
    choose_rows,
    epoch_batches,
)


@dataclass(frozen=True)
class Setting:
    """One set of runs.

    Attributes:
        name: of its folder; the main set has none.
        kind: what is shuffled.
        constant: whether the learning rate stays as it is from the first step to the last.
    """

    name: str
    kind: Kind
    constant: bool = False


class StudySetup:
    """Builds the learner and the rows once; every run starts from the same weights.

    Args:
        config: of the study.

    Raises:
        ConfigError: for a learner without rows, or too few rows.
        MixgymError: whatever else is wrong with sources or model.
    """

    def __init__(self, config: RunConfig) -> None:
        need_rows(config.environment.learner, "to order")
        world = build_environment(config).world
        learner: Any = world.learner
        assert isinstance(learner, CausalLM)
        self.config = config
        self.names, self.targets, self.prior = world.names, world.targets, world.prior
        self.fingerprint = world.fingerprint
        self.sources, self.tokenizer = learner.sources, learner.tokenizer
        self.rows = choose_rows(self.sources, config.orders.rows, config.seed)
        self.held_out = all_rows(self.sources, "select")

    @property
    def steps(self) -> int:
        """Optimiser steps of a run."""
        return self.config.orders.epochs * -(-len(self.rows) // self.config.orders.batch)

    @property
    def mixture(self) -> Mixture:
        """Asked of planes, which do not heed it."""
        return self.prior

    def learner(self, setting: Setting) -> CausalLM:
        """A learner at the start of a run."""
        config = self.config
        update: dict[str, Any] = {"steps": self.steps, "tokens": None, "supervised_tokens": None}
        if setting.constant:
            update |= {"schedule": "constant", "warmup": 0.0}
        return CausalLM(
            lambda: load_model(config.model, config.data.max_length),
            self.tokenizer,
            self.sources,
            max_length=config.data.max_length,
            model_options=config.model,
            training=config.training.model_copy(update=update),
            seed=config.seed,
        )

    def batches(self, setting: Setting, run: int) -> list[Batches]:
        """The batches of every epoch of a run."""
        orders = self.config.orders
        return [
            epoch_batches(setting.kind, len(self.rows), orders.batch, self.config.seed, run, epoch)
            for epoch in range(orders.epochs)
        ]

    def plane(self, batches: list[Batches], shape: tuple[int, int]) -> OrderedPlane:
        """A plane that emits the batches."""
        everything = [batch for epoch in batches for batch in epoch]
        return OrderedPlane(self.rows, everything, shape, self.config.data.max_length)

    def mean(self, evaluation: Evaluation) -> float:
        """Target-weighted mean NLL of an evaluation, nats per supervised token."""
        return target_mean(evaluation.source_nll, self.targets)

    def training_losses(self, learner: CausalLM) -> FloatArray:
        """float64[n], mean NLL of the supervised tokens of each sample."""
        return row_losses(learner, self.rows, "train", self.config.data.max_length)

    def held_out_losses(self, learner: CausalLM) -> FloatArray:
        """The same of every row of the select split."""
        return row_losses(learner, self.held_out, "select", self.config.data.max_length)


def row_losses(learner: CausalLM, rows: Rows, split: str, capacity: int) -> FloatArray:
    """Mean NLL of the supervised tokens of each row, nats, in evaluation mode.

    Args:
        learner: whose model is measured and left as it was.
        rows: of ``split``, n of them.
        split: which split they belong to.
        capacity: tokens in a pack.
    """
    language = learner.trained.language
    splits = [source.splits[split] for source in learner.sources]
    groups = list(best_fit_decreasing(rows.lengths, capacity))
    together = language.packs_together(capacity)
    batches = []
    for start in range(0, len(groups), together):
        some = groups[start : start + together]
        packs = [_pack(rows, group, capacity) for group in some]
        batch = make_batch(packs, splits, 0, learner.device)  # 0 strata per source: cell = stratum
        batches.append(RowBatch(batch, batch.cells, np.concatenate(some)))
    return language.row_losses(batches, len(rows))


def _pack(rows: Rows, group: Sequence[int] | IntArray, capacity: int) -> Pack:
    """A pack of some rows, each given as a stratum of its own."""
    where = rows.where[group].copy()
    where[:, 1] = group
    return Pack(where, rows.lengths[group], capacity)
