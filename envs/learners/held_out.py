"""Measuring a model on held-out splits; their batches are laid out once."""

from collections.abc import Sequence

import numpy as np

from mixgym.envs.errors import DivergenceError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import Evaluation
from mixgym.envs.learners.batching import Batch, evaluation_packs, make_batch
from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.learners.parallel.data_parallel import DataParallel
from mixgym.envs.learners.standard_errors import MOMENTS, row_moments, standard_error
from mixgym.envs.ranks import summed
from mixgym.envs.sources.source import EncodedRows, Source


class HeldOut:
    """The held-out rows of sources, in batches.

    Args:
        sources: K of them.
        max_length: tokens in a pack.

    Attributes:
        kept: batches that were laid out before, by name.
    """

    def __init__(self, sources: Sequence[Source], max_length: int) -> None:
        self.sources, self._max_length = sources, max_length
        self.shape = (len(sources), sources[0].n_strata)
        self.kept: dict[str, list[Batch]] = {}

    def evaluate(self, split: str, language: LanguageModel, ranks: DataParallel) -> Evaluation:
        """Measure a model on a split, every rank a share of the batches.

        Raises:
            DivergenceError: if a loss is not finite, naming the source.
        """
        batches = self.batches(split, language)
        mine = batches[ranks.rank :: ranks.world]
        moments = np.zeros((MOMENTS, *self.shape))
        for batch, losses in zip(mine, language.measured(mine), strict=True):
            moments += row_moments(losses, batch.documents, batch.cells, self.shape)
        moments = summed(moments)  # a row is whole in its batch, so ranks add up
        rows, loss_sum, supervised = moments[:3]
        bad = np.flatnonzero(~np.isfinite(loss_sum).all(-1))
        if bad.size:
            name = self.sources[bad[0]].name
            raise DivergenceError(f"the {split} loss of source {name!r} is not finite")
        return Evaluation(
            loss_sum,
            supervised.astype(np.int64),
            tokens=sum(batch.tokens for batch in batches),
            rows=rows.astype(np.int64),
            error=standard_error(moments),
            source_error=standard_error(moments.sum(-1)),
        )

    def batches(self, split: str, language: LanguageModel) -> list[Batch]:
        """The forward passes over a split."""
        if split not in self.kept:
            packs = evaluation_packs(self.sources, split, self._max_length)
            rows = [source.splits[split] for source in self.sources]
            self.kept[split] = self.lay_out(packs, rows, language)
        return self.kept[split]

    def lay_out(
        self, packs: Sequence[Pack], rows: Sequence[EncodedRows], language: LanguageModel
    ) -> list[Batch]:
        """Forward passes over packs, as many packs in each as memory allows."""
        together = language.packs_together(self._max_length)
        device = str(language.device)
        return [
            make_batch(packs[i : i + together], rows, self.shape[1], device)
            for i in range(0, len(packs), together)
        ]
