"""The sampler: which rows are due, in which order, for a mixture that changes over time.

Each cell (source, stratum) is passed over without replacement and reshuffled every epoch from
(seed, source, stratum, epoch). Rows of all cells are merged by weighted fair queueing: a row is due
when the cell's share of the units handed out reaches the middle of the row. The sampler proposes
rows; whoever packs them says how many were taken, and the rest stay first in line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import BoolArray, FloatArray, IntArray
from mixgym.envs.options import Unit
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.source import Source
from mixgym.envs.spaces.mixture import Mixture


@dataclass(frozen=True)
class CellRows:
    """The training rows of one cell.

    Attributes:
        rows: int64[n], indices into the source's train split.
        units: float64[n], what a row counts in the ratios.
        tokens, supervised: int64[n].
        limit: rows that may be drawn in all (``max_epochs`` passes, rounded up), or None.
        key: (source name, stratum), which names its random stream.
    """

    rows: IntArray
    units: FloatArray
    tokens: IntArray
    supervised: IntArray
    limit: int | None
    key: tuple[str, int]

    def order(self, seed: int, epoch: int) -> IntArray:
        """int64[n], the order of positions in one epoch."""
        source, stratum = self.key
        generator = stream(seed, "order", source, str(stratum), str(epoch))
        return generator.permutation(len(self.rows))

    def upcoming(self, seed: int, drawn: int, count: int) -> IntArray:
        """Positions of the next ``count`` rows after ``drawn`` rows were taken (fewer at a cap)."""
        size = len(self.rows)
        if self.limit is not None:
            count = min(count, self.limit - drawn)
        if size == 0 or count <= 0:
            return np.zeros(0, np.int64)
        first, last = drawn // size, (drawn + count - 1) // size
        orders = np.concatenate([self.order(seed, epoch) for epoch in range(first, last + 1)])
        return orders[drawn - first * size :][:count]


@dataclass(frozen=True)
class Proposal:
    """Rows that are due next, in order.

    Attributes:
        cell: int64[n], flat index k * G + g.
        position: int64[n], position in the cell's rows.
        row: int64[n], index in the source's train split.
        tokens, supervised: int64[n].
        balanced: bool[n]; true where stopping after this row leaves every cell within one row of
            its share of all units since the last change of mixture.
    """

    cell: IntArray
    position: IntArray
    row: IntArray
    tokens: IntArray
    supervised: IntArray
    balanced: BoolArray

    def __len__(self) -> int:
        return len(self.cell)


class MixtureSampler:
    """Cursors over all cells, and the account of what the current mixture has handed out.

    Args:
        sources: the mixture's sources, in order.
        unit: what ratios count: ``supervised_tokens``, ``tokens`` or ``rows``.
        seed: of the order of rows.
    """

    def __init__(self, sources: Sequence[Source], unit: Unit, seed: int) -> None:
        self.seed = seed
        self.shape = (len(sources), sources[0].n_strata)
        self.cells = [
            _cell(source, stratum, unit) for source in sources for stratum in range(source.n_strata)
        ]
        self._longest = np.array([cell.units.max(initial=0.0) for cell in self.cells])
        self._drawn = np.zeros(len(self.cells), np.int64)
        self._units = np.zeros(len(self.cells))
        self._weights: FloatArray | None = None

    def available(self) -> BoolArray:
        """bool[K, G], the cells that have rows to give."""
        flags = [
            len(cell.rows) > 0 and (cell.limit is None or drawn < cell.limit)
            for cell, drawn in zip(self.cells, self._drawn, strict=True)
        ]
        return np.array(flags).reshape(self.shape)

    def epochs(self) -> FloatArray:
        """float64[K, G], passes over each cell's rows so far."""
        sizes = np.array([max(len(cell.rows), 1) for cell in self.cells])
        return (self._drawn / sizes).reshape(self.shape)

    def requested(self) -> FloatArray:
        """float64[K, G], units that the mixture asked for since its last change."""
        weights = np.zeros(len(self.cells)) if self._weights is None else self._weights
        return (weights * self._units.sum()).reshape(self.shape)

    def realised(self) -> FloatArray:
        """float64[K, G], units handed out since the last change of mixture."""
        return self._units.reshape(self.shape).copy()

    def balanced(self) -> bool:
        """Whether every cell is within its longest row of what the mixture asked for."""
        slack = self._longest + 1e-9 * self._units.sum()
        return bool((np.abs(self.realised() - self.requested()).ravel() <= slack).all())

    def set_mixture(self, mixture: Mixture) -> None:
        """Ask for a mixture; the account starts anew only if it differs from the last one.

        Raises:
            MixgymError: if no source with a weight has rows left.
        """
        weights = mixture.restricted(self.available()).cells.ravel()
        if self._weights is None or not np.array_equal(weights, self._weights):
            self._weights = weights
            self._units = np.zeros(len(self.cells))

    def propose(self, tokens: int) -> Proposal:
        """The rows that are due next, until they hold at least ``tokens`` tokens.

        Fewer only if a capped cell runs dry: the rows after that belong to another mixture, which
        :meth:`take` and a further :meth:`set_mixture` arrange.
        """
        assert self._weights is not None
        active = np.flatnonzero(self._weights > 0)
        rate = sum(self._weights[c] * _tokens_per_unit(self.cells[c]) for c in active)
        horizon = self._units.sum() + 1.1 * tokens / rate + self._longest[active].max()
        while True:
            proposal, complete = self._until(active, horizon)
            if complete or proposal.tokens.sum() >= tokens:
                return proposal
            horizon += 0.5 * (horizon - self._units.sum()) + 1.0

    def _until(self, active: NDArray[np.intp], horizon: float) -> tuple[Proposal, bool]:
        """All rows due before ``horizon`` units; true if a capped cell ends the list."""
        due_at: list[FloatArray] = []
        cells: list[IntArray] = []
        positions: list[IntArray] = []
        end = np.inf
        for c in active:
            times, upcoming, dry_at = self._due(int(c), horizon)
            end = min(end, dry_at)
            due_at.append(times)
            cells.append(np.full(len(times), c, np.int64))
            positions.append(upcoming)
        due, cell, position = (
            np.concatenate(due_at),
            np.concatenate(cells),
            np.concatenate(positions),
        )
        keep = np.flatnonzero(due <= end)
        keep = keep[np.lexsort((cell[keep], due[keep]))]
        return self._proposal(cell[keep], position[keep]), bool(np.isfinite(end))

    def _due(self, c: int, horizon: float) -> tuple[FloatArray, IntArray, float]:
        """Due times and positions of a cell's rows before ``horizon``; when it runs dry, if so."""
        assert self._weights is not None
        cell, weight, have = self.cells[c], self._weights[c], self._units[c]
        mean = cell.units.mean()
        # a cell that was just given a row far above its mean has more than it is due by then
        count = int(max(0.0, horizon * weight - have) / mean * 1.2) + 4
        while True:
            upcoming = cell.upcoming(self.seed, int(self._drawn[c]), count)
            units = cell.units[upcoming]
            due = (have + np.cumsum(units) - 0.5 * units) / weight
            capped = len(upcoming) < count
            if capped and (end := float((have + units.sum()) / weight)) < horizon:
                return due, upcoming, end
            if capped or due[-1] > horizon:
                inside = due <= horizon
                return due[inside], upcoming[inside], np.inf
            count *= 2

    def _proposal(self, cell: IntArray, position: IntArray) -> Proposal:
        size = len(cell)
        units, tokens, supervised, row = (
            np.zeros(size),
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
            np.zeros(size, np.int64),
        )
        for c in np.unique(cell):
            at = cell == c
            rows = self.cells[c]
            units[at] = rows.units[position[at]]
            tokens[at] = rows.tokens[position[at]]
            supervised[at] = rows.supervised[position[at]]
            row[at] = rows.rows[position[at]]
        return Proposal(cell, position, row, tokens, supervised, self._balanced(cell, units))

    def _balanced(self, cell: IntArray, units: FloatArray) -> BoolArray:
        """Where stopping keeps every |realised - requested| within the cell's longest row."""
        assert self._weights is not None
        total = self._units.sum() + np.cumsum(units)
        good = np.ones(len(cell), np.bool_)
        for c in np.flatnonzero(self._weights > 0):
            mine = self._units[c] + np.cumsum(np.where(cell == c, units, 0.0))
            good &= np.abs(mine - self._weights[c] * total) <= self._longest[c] + 1e-9 * total
        return good

    def take(self, proposal: Proposal, count: int) -> None:
        """The first ``count`` rows of the proposal were used; the others stay first in line."""
        for c in np.unique(proposal.cell[:count]):
            at = proposal.cell[:count] == c
            self._drawn[c] += int(at.sum())
            self._units[c] += self.cells[c].units[proposal.position[:count][at]].sum()

    def snapshot(self) -> dict[str, Any]:
        """Plain data (lists and numbers) from which :meth:`restore` continues exactly."""
        return {
            "seed": self.seed,
            "drawn": self._drawn.tolist(),
            "units": self._units.tolist(),
            "weights": None if self._weights is None else self._weights.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`snapshot`."""
        self.seed = int(state["seed"])
        self._drawn = np.array(state["drawn"], np.int64)
        self._units = np.array(state["units"], np.float64)
        weights = state["weights"]
        self._weights = None if weights is None else np.array(weights, np.float64)


def _cell(source: Source, stratum: int, unit: Unit) -> CellRows:
    rows = np.flatnonzero(source.strata["train"] == stratum)
    encoded = source.splits["train"]
    tokens, supervised = encoded.lengths[rows], encoded.supervised[rows]
    counted = {"supervised_tokens": supervised, "tokens": tokens, "rows": np.ones_like(tokens)}
    # a part of a row counts as a row; 1.1 * 10 is a little more than 11 in floating point
    limit = (
        None if source.max_epochs is None else int(np.ceil(source.max_epochs * len(rows) - 1e-6))
    )
    return CellRows(
        rows.astype(np.int64),
        counted[unit].astype(np.float64),
        tokens,
        supervised,
        limit,
        (source.name, stratum),
    )


def _tokens_per_unit(cell: CellRows) -> float:
    return float(cell.tokens.sum() / cell.units.sum())
