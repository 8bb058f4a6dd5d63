"""What probes look at: the model, its optimiser, the probe rows and the reward split."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import BoolArray, IntArray
from mixgym.envs.learners.batching import Batch, RowBatch, in_order, lay_out_rows
from mixgym.envs.learners.models.precision import evaluation_mode
from mixgym.envs.learners.models.trained_model import TrainedModel
from mixgym.envs.learners.optimisation import Optimisation
from mixgym.envs.learners.probes.probe_rows import bare_rows, chosen, draw_rows
from mixgym.envs.sources.source import EncodedRows, Source

if TYPE_CHECKING:
    import torch


class Probed:
    """A model with the rows that its probes read; batches are laid out once.

    Args:
        trained: the model.
        optimisation: its optimiser.
        sources: K of them.
        max_length: tokens in a row, at most.
        per_stratum: probe rows of each.
        seed: of their choice.
    """

    def __init__(
        self,
        trained: TrainedModel,
        optimisation: Optimisation,
        sources: Sequence[Source],
        max_length: int,
        per_stratum: int,
        seed: int,
    ) -> None:
        self.trained, self.optimisation = trained, optimisation
        self.sources, self.per_stratum, self.seed = sources, per_stratum, seed
        self.shape = (len(sources), sources[0].n_strata)
        self._max_length = max_length
        self._by_source: dict[bool, list[list[RowBatch]]] = {}
        self._reward: dict[int, list[Batch]] = {}

    def token_losses(self, batch: Batch) -> "torch.Tensor":
        """float[n], NLL of every supervised token."""
        return self.trained.language.token_losses(batch)

    def parameters(self) -> "list[torch.nn.Parameter]":
        """The parameters that are trained, each once."""
        return [p for p in self.trained.parameters().values() if p.requires_grad]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluation mode; but activations are recomputed only in training mode."""
        recompute = self.trained.recomputes and not self.trained.drops
        mode = nullcontext() if recompute else evaluation_mode(self.trained.module)
        with mode, self.trained.language.computing():
            yield

    def rows(self) -> IntArray:
        """int64[n, 3], the probe rows: (source, stratum, row of the train split)."""
        return draw_rows(self.sources, self.per_stratum, self.seed)

    def cells(self) -> BoolArray:
        """bool[K, G], cells that have probe rows."""
        where = np.zeros(self.shape, np.bool_)
        rows = self.rows()
        where[rows[:, 0], rows[:, 1]] = True
        return where

    def batches(self, *, bare: bool = False) -> list[RowBatch]:
        """The forward passes over all probe rows, source by source."""
        return [one for source in self.by_source(bare=bare) for one in source]

    def by_source(self, *, bare: bool = False) -> list[list[RowBatch]]:
        """Of every source its forward passes; ``bare``: over completions without prompts."""
        if bare not in self._by_source:
            rows = self.rows()
            encoded = chosen(self.sources, rows)
            encoded = bare_rows(encoded) if bare else encoded
            which = np.stack([rows[:, 0], rows[:, 1], np.arange(len(rows))], axis=1)
            self._by_source[bare] = [
                self._lay_out(which[rows[:, 0] == k], encoded) for k in range(self.shape[0])
            ]
        return self._by_source[bare]

    def reward_batches(self, source: int) -> list[Batch]:
        """The reward split of one source."""
        if source not in self._reward:
            rows = self.sources[source].splits["reward"]
            strata = self.sources[source].strata["reward"]
            which = np.stack([np.zeros_like(strata), strata, np.arange(len(rows))], axis=1)
            self._reward[source] = [one.batch for one in self._lay_out(which, rows)]
        return self._reward[source]

    def _lay_out(self, which: IntArray, rows: EncodedRows) -> list[RowBatch]:
        """Forward passes over rows, in their order."""
        language = self.trained.language
        capacity = language.packs_together(self._max_length) * self._max_length
        return [
            lay_out_rows(which[part], rows, self.shape[1], str(language.device))
            for part in in_order(rows.lengths[which[:, 2]], capacity)
        ]
