"""The probes of a causal LM: losses and embeddings of the probe rows.

Rows of one source are packed together and do not see each other; gradients are in
:mod:`mixgym.envs.learners.probes.gradients`. Nothing that training reads is written: gradients are
taken without touching ``.grad``, modules go back to the mode they were in, and no random number is
drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import ProbeResult
from mixgym.envs.learners.batching import Batch, make_batch
from mixgym.envs.learners.models.precision import Matmul, evaluation_mode, matmul
from mixgym.envs.learners.probes import gradients
from mixgym.envs.learners.probes.probe_rows import (
    bare_rows,
    baseline_cost,
    chosen,
    draw_rows,
    probe_cost,
)
from mixgym.envs.probes import find_probe
from mixgym.envs.sources.source import EncodedRows, Source

if TYPE_CHECKING:
    import torch

LOSSES = "losses"  # of the probe rows, among what was measured at the start
BARE = "bare losses"
REFERENCE = "reference losses"


@dataclass(frozen=True)
class RowBatch:
    """A forward pass over probe rows.

    Attributes:
        batch: the tensors.
        rows: int64[n], which probe row each supervised token belongs to.
        documents: int64[documents], the probe row of each document.
    """

    batch: Batch
    rows: IntArray
    documents: IntArray


class ProbedModel:
    """The probes of :class:`~mixgym.envs.learners.causal_lm.CausalLM` (a base class of it)."""

    if TYPE_CHECKING:
        model: Any
        sources: Sequence[Source]
        shape: tuple[int, int]
        device: str
        _seed: int
        _max_length: int
        _dropout: bool
        _recomputes: bool
        _matmul: Matmul
        _optimizer: torch.optim.Optimizer
        _token_losses: Callable[[Batch], torch.Tensor]
        _packs_together: Callable[[], int]

    def begin_probing(
        self, probe_rows: int, make_reference: "Callable[[], ProbedModel] | None"
    ) -> None:
        """Set up; nothing is measured yet.

        Args:
            probe_rows: per stratum.
            make_reference: gives the learner that holds the reference model.
        """
        self.probe_rows = probe_rows
        self._make_reference = make_reference
        self._at_start: dict[str, FloatArray] = {}
        self._probe_batches: dict[str, list[list[RowBatch]]] = {}
        self._reward_batches: dict[int, list[Batch]] = {}

    def begin_probes(self, names: Sequence[str]) -> int:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        kinds = [find_probe(name) for name in names]
        if any(kind.needs_reference for kind in kinds) and REFERENCE not in self._at_start:
            self._measure_reference(names)
        if any(kind.baseline and not kind.needs_reference for kind in kinds):
            self._at_start[LOSSES] = self.token_losses_of_probes(bare=False)
        if "ifd_ratio" in names:
            self._at_start[BARE] = self.token_losses_of_probes(bare=True)
        return baseline_cost(names, self.sources, self.probe_rows, self._seed)

    def _measure_reference(self, names: Sequence[str]) -> None:
        if self._make_reference is None:
            wanted = [name for name in names if find_probe(name).needs_reference]
            raise ConfigError(
                f"environment.probes: {', '.join(wanted)} compares with a reference model: set "
                "environment.reference to its folder"
            )
        self._at_start[REFERENCE] = self._make_reference().token_losses_of_probes(bare=False)

    def probe(self, name: str) -> ProbeResult:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        kind = find_probe(name)
        values = self._source_values(name) if kind.level == "source" else self._cell_values(name)
        where = self._probed_cells()
        where = np.asarray(where.any(-1)) if kind.level == "source" else where
        bad = np.argwhere(where & ~np.isfinite(values))
        if len(bad):
            source = self.sources[bad[0][0]].name
            raise DivergenceError(f"the probe {name} of source {source!r} is not finite")
        cost = probe_cost(name, self.sources, self.probe_rows, self._seed)
        return ProbeResult(np.where(where, values, np.nan), cost)

    # --- rows ---------------------------------------------------------------------------------

    def _rows(self) -> IntArray:
        return draw_rows(self.sources, self.probe_rows, self._seed)

    def _probed_cells(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """bool[K, G], cells that have probe rows."""
        where = np.zeros(self.shape, np.bool_)
        rows = self._rows()
        where[rows[:, 0], rows[:, 1]] = True
        return where

    def _by_source(self, *, bare: bool) -> list[list[RowBatch]]:
        """Of every source its forward passes, made once."""
        name = BARE if bare else LOSSES
        if name not in self._probe_batches:
            rows = self._rows()
            encoded = chosen(self.sources, rows)
            encoded = bare_rows(encoded) if bare else encoded
            self._probe_batches[name] = [
                list(self._in_batches(encoded, rows, np.flatnonzero(rows[:, 0] == k)))
                for k in range(self.shape[0])
            ]
        return self._probe_batches[name]

    def _in_batches(
        self, encoded: EncodedRows, rows: IntArray, which: IntArray
    ) -> Iterator[RowBatch]:
        capacity = self._packs_together() * self._max_length
        for part in in_order(encoded.lengths[which], capacity):
            here = which[part]
            where = np.stack([np.zeros(len(here), np.int64), rows[here, 1], here], axis=1)
            pack = Pack(where, encoded.lengths[here], capacity)
            batch = make_batch([pack], [encoded], self.shape[1], self.device)
            yield RowBatch(batch, np.repeat(here, encoded.supervised[here]), here)

    def reward_batches(self, source: int) -> list[Batch]:
        """The reward split of one source, made once."""
        if source not in self._reward_batches:
            rows = self.sources[source].splits["reward"]
            strata = self.sources[source].strata["reward"]
            where = np.stack([np.zeros(len(rows), np.int64), strata, np.arange(len(rows))], axis=1)
            capacity = self._packs_together() * self._max_length
            self._reward_batches[source] = [
                make_batch(
                    [Pack(where[part], rows.lengths[part], capacity)],
                    [rows],
                    self.shape[1],
                    self.device,
                )
                for part in in_order(rows.lengths, capacity)
            ]
        return self._reward_batches[source]

    # --- losses -------------------------------------------------------------------------------

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Evaluation mode; but activations are recomputed only in training mode."""
        recompute = self._recomputes and not self._dropout
        mode = nullcontext() if recompute else evaluation_mode(self.model)
        with mode, matmul(self._matmul):
            yield

    def token_losses_of_probes(self, *, bare: bool) -> FloatArray:
        """float64[tokens], NLL of every supervised token of the probe rows, row after row."""
        import torch

        batches = [one for source in self._by_source(bare=bare) for one in source]
        with evaluation_mode(self.model), torch.no_grad(), matmul(self._matmul):
            parts = [self._token_losses(one.batch).cpu().double().numpy() for one in batches]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _row_of_token(self, *, bare: bool) -> IntArray:
        batches = [one for source in self._by_source(bare=bare) for one in source]
        return np.concatenate([one.rows for one in batches]).astype(np.int64)

    def _row_means(self, tokens: FloatArray, *, bare: bool = False) -> FloatArray:
        """float64[rows], the mean over each row's supervised tokens."""
        rows, count = self._row_of_token(bare=bare), len(self._rows())
        return np.bincount(rows, tokens, count) / np.maximum(np.bincount(rows, minlength=count), 1)

    def _cell_means(self, by_row: FloatArray) -> FloatArray:
        """float64[K, G], the mean over each cell's rows; NaN without rows."""
        rows = self._rows()
        cells = rows[:, 0] * self.shape[1] + rows[:, 1]
        size = self.shape[0] * self.shape[1]
        count = np.bincount(cells, minlength=size)
        sums = np.bincount(cells, by_row, size)
        means = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
        return means.reshape(self.shape)

    def _cell_values(self, name: str) -> FloatArray:
        tokens = self.token_losses_of_probes(bare=False)
        if name == "excess_loss":
            excess = np.maximum(tokens - self._began(REFERENCE), 0.0)
            return self._token_means(excess)
        now = self._row_means(tokens)
        if name == "loss":
            return self._cell_means(now)
        start = self._row_means(self._began(LOSSES))
        if name == "ifd_ratio":
            bare = self.token_losses_of_probes(bare=True) - self._began(BARE)
            return self._cell_means(np.exp(now - start - self._row_means(bare, bare=True)))
        return self._cell_means(COMPARISONS[name](now, start))

    def _token_means(self, tokens: FloatArray) -> FloatArray:
        """float64[K, G], the mean over each cell's supervised tokens; NaN without rows."""
        rows = self._rows()[self._row_of_token(bare=False)]
        cells = rows[:, 0] * self.shape[1] + rows[:, 1]
        size = self.shape[0] * self.shape[1]
        count = np.bincount(cells, minlength=size)
        means = np.bincount(cells, tokens, size) / np.maximum(count, 1)
        return np.where(count > 0, means, np.nan).reshape(self.shape)

    def _began(self, name: str) -> FloatArray:
        if name not in self._at_start:
            raise ConfigError(
                f"this probe compares with the {name} at the start of the episode, which were not "
                "measured: name it in environment.probes before the run starts"
            )
        return self._at_start[name]

    # --- embeddings and gradients ----------------------------------------------------------------

    def _source_values(self, name: str) -> FloatArray:
        if name == "cosine_similarity":
            return mean_cosine(self._embeddings())
        with self._looking():
            return gradients.PROBES[name](self)

    def _embeddings(self) -> FloatArray:
        """float64[K, hidden], mean over rows of the mean over tokens of the top layer's states."""
        import torch

        seen: list[torch.Tensor] = []
        handle = self.model.base_model.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output[0])
        )
        try:
            with evaluation_mode(self.model), torch.no_grad(), matmul(self._matmul):
                return np.stack(
                    [self._embedding(part, seen) for part in self._by_source(bare=False)]
                )
        finally:
            handle.remove()

    def _embedding(self, batches: list[RowBatch], seen: "list[torch.Tensor]") -> FloatArray:
        import torch

        rows: list[torch.Tensor] = []
        for one in batches:
            seen.clear()
            self._token_losses(one.batch)
            documents = seen[0][0].double().split(list(one.batch.document_lengths))
            rows += [states.mean(0) for states in documents]
        if not rows:
            return np.full(self.model.config.get_text_config().hidden_size, np.nan)
        mean: FloatArray = torch.stack(rows).mean(0).cpu().numpy()
        return mean

    def probe_state(self) -> dict[str, list[float]]:
        """What was measured at the start, for a snapshot."""
        return {name: values.tolist() for name, values in self._at_start.items()}

    def set_probe_state(self, state: dict[str, list[float]]) -> None:
        """Continue from :meth:`probe_state`."""
        self._at_start = {name: np.array(values, np.float64) for name, values in state.items()}


COMPARISONS: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "perplexity_ratio": lambda now, start: np.exp(now - start),
    "nll_difference": lambda now, start: now - start,
    "loss_ratio": lambda now, start: now / np.maximum(start, 1e-6),
}
"""float64[rows] from each row's NLL now and at the start."""


def mean_cosine(embeddings: FloatArray) -> FloatArray:
    """Mean cosine of each embedding with all of them, itself included (MoS).

    Args:
        embeddings: float64[K, hidden]; rows of NaN are left out.

    Returns:
        float64[K].

    >>> mean_cosine(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).round(6).tolist()
    [0.569036, 0.569036, 0.804738]
    """
    known = np.isfinite(embeddings).all(-1)
    whole = embeddings[known]
    unit = whole / np.maximum(np.linalg.norm(whole, axis=-1, keepdims=True), 1e-300)
    values = np.full(len(embeddings), np.nan)
    values[known] = (unit @ unit.T).sum(-1) / max(len(unit), 1)
    return values


def in_order(lengths: IntArray, capacity: int) -> list[slice]:
    """Consecutive runs of rows of at most ``capacity`` tokens, or of one longer row.

    >>> in_order(np.array([3, 3, 5, 9, 1]), 8)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    parts, start, used = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        if used and used + length > capacity:
            parts.append(slice(start, index))
            start, used = index, 0
        used += length
    return [*parts, slice(start, len(lengths))] if len(lengths) else []
