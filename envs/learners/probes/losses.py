"""The probes of a causal LM: losses and embeddings of the probe rows.

Rows of one source are packed together and do not see each other; gradients are in
:mod:`mixgym.envs.learners.probes.gradients`. Nothing that training reads is written: gradients are
taken without touching ``.grad``, modules go back to the mode they were in, and no random number is
drawn.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError, DivergenceError
from mixgym.envs.learners.base import ProbeResult
from mixgym.envs.learners.batching import RowBatch
from mixgym.envs.learners.probes import gradients
from mixgym.envs.learners.probes.probe_rows import baseline_cost, probe_cost
from mixgym.envs.learners.probes.probed import Probed
from mixgym.envs.probes import find_probe

if TYPE_CHECKING:
    import torch

_LOSSES = "losses"  # of the probe rows, among what was measured at the start
_BARE = "bare losses"
REFERENCE = "reference losses"


class Probes:
    """The probes of a model, and what was measured for them at the start of the episode.

    Args:
        probed: the model and its rows.
        make_reference: gives float64[tokens], what :meth:`token_losses` of the reference model is.
    """

    def __init__(
        self, probed: Probed, make_reference: Callable[[], FloatArray] | None = None
    ) -> None:
        self.probed = probed
        self._make_reference = make_reference
        self._at_start: dict[str, FloatArray] = {}

    def begin(self, names: Sequence[str]) -> int:
        """See ``begin_probes`` of :class:`~mixgym.envs.learners.base.Learner`."""
        kinds = [find_probe(name) for name in names]
        _check_measurable(names)
        if any(kind.needs_reference for kind in kinds) and REFERENCE not in self._at_start:
            self._measure_reference(names)
        if any(kind.baseline and not kind.needs_reference for kind in kinds):
            self._at_start[_LOSSES] = self.token_losses(bare=False)
        if "ifd_ratio" in names:
            self._at_start[_BARE] = self.token_losses(bare=True)
        probed = self.probed
        return baseline_cost(names, probed.sources, probed.per_stratum, probed.seed)

    def _measure_reference(self, names: Sequence[str]) -> None:
        if self._make_reference is None:
            wanted = [name for name in names if find_probe(name).needs_reference]
            raise ConfigError(
                f"environment.probes: {', '.join(wanted)} compares with a reference model: set "
                "environment.reference to its folder"
            )
        self._at_start[REFERENCE] = self._make_reference()

    def measure(self, name: str) -> ProbeResult:
        """See ``probe`` of :class:`~mixgym.envs.learners.base.Learner`."""
        probed, kind = self.probed, find_probe(name)
        by_source = kind.level == "source"
        if kind.language is not None:
            values = np.asarray(kind.language(self), np.float64)
        else:
            values = self._source_values(name) if by_source else CELL_VALUES[name](self)
        where = probed.cells()
        where = np.asarray(where.any(-1)) if by_source else where
        bad = np.argwhere(where & ~np.isfinite(values))
        if len(bad):
            source = probed.sources[bad[0][0]].name
            raise DivergenceError(f"the probe {name} of source {source!r} is not finite")
        cost = probe_cost(name, probed.sources, probed.per_stratum, probed.seed)
        return ProbeResult(np.where(where, values, np.nan), cost)

    def state(self) -> dict[str, list[float]]:
        """What was measured at the start, for a snapshot."""
        return {name: values.tolist() for name, values in self._at_start.items()}

    def set_state(self, state: dict[str, list[float]]) -> None:
        """Continue from :meth:`state`."""
        self._at_start = {name: np.array(values, np.float64) for name, values in state.items()}

    def token_losses(self, *, bare: bool) -> FloatArray:
        """float64[tokens], NLL of every supervised token of the probe rows, row after row."""
        batches = (one.batch for one in self.probed.batches(bare=bare))
        parts = self.probed.trained.language.measured(batches)
        return np.concatenate(parts) if parts else np.zeros(0)

    def _row_of_token(self, *, bare: bool) -> IntArray:
        batches = self.probed.batches(bare=bare)
        return np.concatenate([one.rows for one in batches]).astype(np.int64)

    def row_means(self, tokens: FloatArray, *, bare: bool = False) -> FloatArray:
        """float64[rows], the mean over each row's supervised tokens."""
        rows, count = self._row_of_token(bare=bare), len(self.probed.rows())
        return np.bincount(rows, tokens, count) / np.maximum(np.bincount(rows, minlength=count), 1)

    def cell_means(self, by_row: FloatArray) -> FloatArray:
        """float64[K, G], the mean over each cell's rows; NaN without rows."""
        rows = self.probed.rows()
        cells = rows[:, 0] * self.probed.shape[1] + rows[:, 1]
        size = self.probed.shape[0] * self.probed.shape[1]
        count = np.bincount(cells, minlength=size)
        sums = np.bincount(cells, by_row, size)
        means = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
        return means.reshape(self.probed.shape)

    def token_means(self, tokens: FloatArray) -> FloatArray:
        """float64[K, G], the mean over each cell's supervised tokens; NaN without rows."""
        rows = self.probed.rows()[self._row_of_token(bare=False)]
        cells = rows[:, 0] * self.probed.shape[1] + rows[:, 1]
        size = self.probed.shape[0] * self.probed.shape[1]
        count = np.bincount(cells, minlength=size)
        means = np.bincount(cells, tokens, size) / np.maximum(count, 1)
        return np.where(count > 0, means, np.nan).reshape(self.probed.shape)

    def row_losses(self) -> FloatArray:
        """float64[rows], NLL of the probe rows now."""
        return self.row_means(self.token_losses(bare=False))

    def row_losses_at_start(self) -> FloatArray:
        """float64[rows], NLL of the probe rows at the start; raises as :meth:`at_start`."""
        return self.row_means(self.at_start(_LOSSES))

    def at_start(self, name: str) -> FloatArray:
        """What was measured at the start: ``_LOSSES``, ``_BARE`` or ``REFERENCE``, per token.

        Raises:
            ConfigError: if nobody had asked for it then.
        """
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
        with self.probed.looking():
            return gradients.PROBES[name](self.probed)

    def _embeddings(self) -> FloatArray:
        """float64[K, hidden], mean over rows of the mean over tokens of the top layer's states."""
        seen: list[torch.Tensor] = []
        language = self.probed.trained.language
        handle = language.module.base_model.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output[0])
        )
        try:
            with language.measuring():
                return np.stack([self._embedding(part, seen) for part in self.probed.by_source()])
        finally:
            handle.remove()

    def _embedding(self, batches: list[RowBatch], seen: "list[torch.Tensor]") -> FloatArray:
        import torch

        rows: list[torch.Tensor] = []
        for one in batches:
            seen.clear()
            self.probed.token_losses(one.batch)
            documents = seen[0][0].double().split(list(one.batch.document_lengths))
            rows += [states.mean(0) for states in documents]
        if not rows:
            return np.full(self.probed.trained.module.config.get_text_config().hidden_size, np.nan)
        mean: FloatArray = torch.stack(rows).mean(0).cpu().numpy()
        return mean


def _check_measurable(names: Sequence[str]) -> None:
    """Refuse plug-ins that have no value on a language model.

    Raises:
        ConfigError: naming the probe.
    """
    for name in names:
        kind = find_probe(name)
        if kind.language is None and kind.curves is not None:
            raise ConfigError(
                f"environment.probes: {name} is measured in the fast world only; give its "
                "ProbeKind language=..., a function of the model, or leave it out"
            )


def _ifd_ratio(probes: Probes) -> FloatArray:
    bare = probes.token_losses(bare=True) - probes.at_start(_BARE)
    risen = probes.row_losses() - probes.row_losses_at_start() - probes.row_means(bare, bare=True)
    return probes.cell_means(np.exp(risen))


def _excess_loss(probes: Probes) -> FloatArray:
    excess = probes.token_losses(bare=False) - probes.at_start(REFERENCE)
    return probes.token_means(np.maximum(excess, 0.0))


def _by_rows(
    compare: Callable[[FloatArray, FloatArray], FloatArray],
) -> Callable[[Probes], FloatArray]:
    """The mean over a cell's rows of what becomes of each row's NLL now and at the start."""
    return lambda probes: probes.cell_means(
        compare(probes.row_losses(), probes.row_losses_at_start())
    )


CELL_VALUES: dict[str, Callable[[Probes], FloatArray]] = {
    "loss": lambda probes: probes.cell_means(probes.row_losses()),
    "perplexity_ratio": _by_rows(lambda now, start: np.exp(now - start)),
    "nll_difference": _by_rows(lambda now, start: now - start),
    "loss_ratio": _by_rows(lambda now, start: now / np.maximum(start, 1e-6)),
    "ifd_ratio": _ifd_ratio,
    "excess_loss": _excess_loss,
}
"""Probes of the strata of a causal LM: float64[K, G], NaN in cells without rows."""


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
