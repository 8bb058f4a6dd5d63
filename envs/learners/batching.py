"""From packs to tensors: tokens, positions, whose logits are needed, and a rank's stretch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.parallel.sequence_parallel import Shard
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.envs.sources.source import EncodedRows, Source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        input_ids, position_ids: int64[1, tokens]; positions restart with every document.
        document_lengths: tokens of each document.
        predictors: int64[n], positions whose logits predict a supervised token.
        labels: int64[n], the supervised tokens.
        weights: float32[n], their weights in the loss.
        cells: int64[n], flat (source, stratum) of each supervised token.
        documents: int64[n], which document of the row each supervised token belongs to.
        sequence: this rank's part, where several share the row; None: all of it.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    document_lengths: tuple[int, ...]
    predictors: "torch.Tensor"
    labels: "torch.Tensor"
    weights: "torch.Tensor"
    cells: IntArray
    documents: IntArray
    sequence: Shard | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the row."""
        return int(self.input_ids.shape[1])


@dataclass(frozen=True)
class RowBatch:
    """A forward pass whose tokens are told apart by row.

    Attributes:
        batch: the tensors.
        rows: int64[n], which row each supervised token belongs to.
        documents: int64[documents], the row of each document.
    """

    batch: Batch
    rows: IntArray
    documents: IntArray


def make_batch(
    packs: Iterable[Pack], splits: Sequence[EncodedRows], groups: int, device: str
) -> Batch:
    """Lay the documents of ``packs`` end to end.

    Args:
        packs: what to lay out; ``Pack.rows`` index ``splits[source]``.
        splits: for each source the rows that packs refer to.
        groups: G, strata per source.
        device: of the tensors.
    """
    import torch

    tokens, labels, weights, cells, lengths, counts = [], [], [], [], [], []
    for pack in packs:
        for place, (source, stratum, row) in enumerate(pack.rows.tolist()):
            row_tokens, row_labels = splits[source].row(row)
            tokens.append(row_tokens)
            labels.append(row_labels)
            lengths.append(len(row_tokens))
            counts.append(count := int(row_labels.sum()))
            own = 1.0 if pack.document_weights is None else pack.document_weights[place]
            weights.append(np.full(count, pack.weight * own, np.float32))
            cells.append(np.full(count, source * groups + stratum, np.int64))
    ids = np.concatenate(tokens).astype(np.int64)
    supervised = np.flatnonzero(np.concatenate(labels))
    positions = np.concatenate([np.arange(n) for n in lengths])

    def tensor(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> "torch.Tensor":
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        tensor(ids)[None],
        tensor(positions)[None],
        tuple(lengths),
        tensor(supervised - 1),  # a row's first token is never supervised, so this stays inside it
        tensor(ids[supervised]),
        tensor(np.concatenate(weights)),
        np.concatenate(cells),
        np.repeat(np.arange(len(counts)), counts),
    )


def shard_batch(batch: Batch, shard: Shard) -> Batch:
    """This rank's stretch of a batch, padded with a document of its own where it does not divide.

    Labels were paired with the positions that predict them before, so that none is lost or crosses
    into the next document at the cuts. ``document_lengths`` stay those of the whole pack.
    """
    if shard.degree == 1:
        return batch
    import torch

    extra = -batch.tokens % shard.degree
    filler = torch.zeros(1, extra, dtype=batch.input_ids.dtype, device=batch.input_ids.device)
    places = torch.arange(extra, device=filler.device)[None]
    ids = torch.cat([batch.input_ids, filler], dim=1)
    positions = torch.cat([batch.position_ids, places], dim=1)
    size = ids.shape[1] // shard.degree
    start = shard.position * size
    mine = (batch.predictors >= start) & (batch.predictors < start + size)
    return replace(
        batch,
        input_ids=ids[:, start : start + size],
        position_ids=positions[:, start : start + size],
        document_lengths=batch.document_lengths + ((extra,) if extra else ()),
        predictors=batch.predictors[mine] - start,
        labels=batch.labels[mine],
        weights=batch.weights[mine],
        cells=batch.cells[mine.cpu().numpy()],
        documents=batch.documents[mine.cpu().numpy()],
        sequence=shard,
    )


def lay_out_rows(which: IntArray, rows: EncodedRows, groups: int, device: str) -> RowBatch:
    """Some of the rows end to end.

    Args:
        which: int64[m, 3], (ignored, stratum, row) of each.
        rows: that they are among.
        groups: G, strata per source.
        device: of the tensors.
    """
    where = which.copy()
    where[:, 0] = 0
    documents = which[:, 2]
    lengths = rows.lengths[documents]
    batch = make_batch([Pack(where, lengths, int(lengths.sum()))], [rows], groups, device)
    return RowBatch(batch, np.repeat(documents, rows.supervised[documents]), documents)


def sum_by_cell(
    values: "torch.Tensor | FloatArray", batch: Batch, shape: tuple[int, int]
) -> FloatArray:
    """float64[K, G], the sum over the supervised tokens of each cell.

    Args:
        values: float[n], one for every supervised token of the batch.
        batch: whose tokens they are.
        shape: (K, G).
    """
    if not isinstance(values, np.ndarray):
        values = values.detach().to("cpu").double().numpy()
    sums = np.bincount(batch.cells, values, minlength=shape[0] * shape[1])
    return sums.astype(np.float64).reshape(shape)


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


def evaluation_packs(sources: Sequence[Source], split: str, capacity: int) -> list[Pack]:
    """All rows of a split, best-fit packed in one fixed order."""
    rows = [
        np.stack([np.full(n, k), source.strata[split], np.arange(n)], axis=1)
        for k, source in enumerate(sources)
        if (n := len(source.splits[split]))
    ]
    if not rows:
        return []
    return pack_rows(np.concatenate(rows), sources, split, capacity)


def pack_rows(rows: IntArray, sources: Sequence[Source], split: str, capacity: int) -> list[Pack]:
    """The rows int64[n, 3], (source, stratum, row of the split), best-fit packed."""
    lengths = np.array([sources[k].splits[split].lengths[i] for k, _, i in rows], np.int64)
    return [Pack(rows[g], lengths[g], capacity) for g in best_fit_decreasing(lengths, capacity)]
