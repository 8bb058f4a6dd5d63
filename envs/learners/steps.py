"""The two halves of an optimiser step of a causal LM, in one process or several.

The loss of a step is sum of w * token loss / sum of w over all its packs, micro-steps and ranks.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.batching import Batch, make_batch, shard_batch, sum_by_cell
from mixgym.envs.learners.models.trained_model import TrainedModel
from mixgym.envs.learners.optimisation import Optimisation
from mixgym.envs.learners.parallel.data_parallel import DataParallel
from mixgym.envs.random_streams import stream
from mixgym.envs.ranks import sum_gradients, summed
from mixgym.envs.sources.source import Source


class OptimiserSteps:
    """Accumulates and applies; a :class:`~mixgym.envs.learners.base.Trainable`.

    Args:
        trained: the model.
        optimisation: its optimiser.
        sources: whose training rows packs refer to.
        ranks: the processes that train it.
        seed: names the dropout stream.
    """

    def __init__(
        self,
        trained: TrainedModel,
        optimisation: Optimisation,
        sources: Sequence[Source],
        ranks: DataParallel,
        seed: int,
    ) -> None:
        self.trained, self.optimisation = trained, optimisation
        self.sources, self.ranks, self.seed = sources, ranks, seed
        self.shape = (len(sources), sources[0].n_strata)

    def accumulate(self, packs: tuple[Pack, ...]) -> tuple[FloatArray, float]:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        batches = self.micro_batches(packs)
        loss_sum, loss = self.accumulate_batches(batches, packs[0].normaliser)
        return summed(loss_sum), loss

    def apply(self) -> float:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        return self.optimisation.apply()

    def accumulate_batches(
        self, batches: list[Batch], normaliser: float | None = None
    ) -> tuple[FloatArray, float]:
        """Add the gradient of a global batch, whose part of this rank ``batches`` are.

        Returns:
            (loss sums [K, G] of this rank, loss of the global batch).

        Raises:
            DivergenceError: if the loss is not finite, on every rank; gradients are dropped.
        """
        import torch

        if normaliser is None:
            weights = sum(float(batch.weights.sum(dtype=torch.float64)) for batch in batches)
            normaliser = float(summed(np.array([weights]))[0])
        loss_sum, total = np.zeros(self.shape), 0.0
        with self._summed_over_ranks():
            for part, batch in enumerate(batches):
                sums, value = self._backward(batch, part, normaliser)
                loss_sum += sums
                total += value
        total = float(summed(np.array([total]))[0])
        self._check(total)  # on every rank, so that none waits for another
        return loss_sum, total

    def _backward(self, batch: Batch, part: int, normaliser: float) -> tuple[FloatArray, float]:
        """Forward and backward pass of a micro-step: (loss sums [K, G], its part of the loss)."""
        with self.dropout_stream(part), self.trained.language.computing():
            losses = self.trained.language.token_losses(batch)
            loss = (losses * batch.weights).sum() / normaliser
            value = float(loss.detach())
            if self.ranks.world == 1:
                self._check(value)
            loss.backward()
        return sum_by_cell(losses, batch, self.shape), value

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.optimisation.refuse(f"the training loss is {loss}")

    @contextmanager
    def _summed_over_ranks(self) -> Iterator[None]:
        """Gradients added inside are summed over the ranks; those from before stay as they are."""
        if self.ranks.world == 1:
            yield
            return
        parameters: list[Any] = list(self.trained.module.parameters())
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        yield
        sum_gradients(parameters)
        for parameter, old in zip(parameters, before, strict=True):
            if old is not None:
                parameter.grad = old if parameter.grad is None else parameter.grad + old

    def micro_batches(self, packs: tuple[Pack, ...]) -> list[Batch]:
        """This rank's forward passes: as few as accumulation allows, or one a pack under a mask."""
        self.trained.recompute(packs[0].checkpointed_layers)
        packs, shard = self.ranks.mine(packs)
        if not packs:
            return []
        splits = [source.splits["train"] for source in self.sources]
        language = self.trained.language
        wanted = self.optimisation.options.accumulation if language.joins else len(packs)
        parts = np.array_split(np.arange(len(packs)), min(wanted, len(packs)))
        device = str(language.device)
        batches = [
            make_batch([packs[i] for i in part], splits, self.shape[1], device) for part in parts
        ]
        return [shard_batch(batch, shard) for batch in batches]

    @contextmanager
    def dropout_stream(self, part: int) -> Iterator[None]:
        """Dropout draws from (seed, step, micro-step); the global stream stays untouched."""
        if not self.trained.drops:
            yield
            return
        import torch

        mine = () if self.ranks.world == 1 else (f"rank {self.ranks.rank}",)
        names = ("dropout", str(self.optimisation.steps), str(part), *mine)
        seed = stream(self.seed, *names).integers(2**63)
        device = self.trained.language.device
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            torch.manual_seed(int(seed))
            yield
