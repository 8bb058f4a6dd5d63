"""What a bilevel step rule asks of a model, and how a causal LM answers.

The rule keeps a second model beside the first. It lends the second one's tensors to the same
modules, so that batch, dropout draws and precision are those of the first by construction. Nothing
here knows about source weights.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import Trainable
from mixgym.envs.learners.batching import Batch, evaluation_packs, make_batch, pack_rows
from mixgym.envs.learners.learning_rate import learning_rate_factor
from mixgym.envs.learners.models.precision import Matmul, matmul
from mixgym.envs.learners.parallel.data_parallel import DataParallel
from mixgym.envs.options import TrainingOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.ranks import summed
from mixgym.envs.sources.source import Source
from mixgym.envs.sources.splits import VALIDATION, check_validation, without_validation

if TYPE_CHECKING:
    import torch

CLIP_MARGIN = 1e-6  # what torch adds to a norm before it divides by it
VALIDATION_DRAWS = 1_000_000  # names the dropout draws of validation batches among micro-steps

Tensors = Mapping[str, "torch.Tensor"]


class Pairable(Trainable, Protocol):
    """A model that a bilevel rule can train beside a copy of itself."""

    @property
    def source_names(self) -> tuple[str, ...]:
        """Of the K sources."""
        ...

    @property
    def progress(self) -> float:
        """Share of the budget used before this step, in [0, 1]."""
        ...

    def parameters(self) -> "dict[str, torch.Tensor]":
        """The trainable parameters by name, whether frozen for the moment or not."""
        ...

    def blocks(self) -> list[list[str]]:
        """Names of the parameters of every block, from the input to the output."""
        ...

    def source_counts(self, packs: tuple[Pack, ...]) -> FloatArray:
        """float64[K], supervised tokens of a global batch (of this rank)."""
        ...

    def even_packs(self, index: int) -> tuple[Pack, ...]:
        """Packs of about a global batch, of training rows of every source alike.

        As many tokens of every source over time: a source whose rows are longer than its share of
        a batch has one only now and then. Which rows, ``index`` (from 0) and the seed say.
        """
        ...

    def accumulate_weighted(
        self, packs: tuple[Pack, ...], weights: FloatArray | None
    ) -> tuple[FloatArray, float]:
        """Like ``accumulate``, for the loss sum_j weights_j * (token mean of source j).

        ``weights`` [K] are normalised over the sources that are present; None: the plain loss.
        """
        ...

    def validate(self, index: int, packs: int | None, scale: float) -> float:
        """Add ``scale`` times the gradient of validation batch ``index``; return its loss."""
        ...

    def losses(self, packs: tuple[Pack, ...]) -> FloatArray:
        """float64[K, G], loss sums of a batch without a gradient, as ``accumulate`` finds them."""
        ...

    def slopes(self, packs: tuple[Pack, ...], direction: Tensors) -> FloatArray:
        """float64[K, G], derivative of the loss sums along a direction, by forward mode.

        Raises:
            NotImplementedError: if some operation of the model has no forward derivative.
        """
        ...

    def make_optimizer(self, parameters: Tensors) -> "torch.optim.Optimizer":
        """An optimiser for other tensors, with the settings of the model's own."""
        ...

    @property
    def optimizer(self) -> "torch.optim.Optimizer":
        """The model's own."""
        ...

    def rate(self) -> float:
        """Learning rate of the current step."""
        ...

    @property
    def base_rate(self) -> float:
        """Learning rate without its schedule."""
        ...

    def clip_factor(self, norm: float) -> float:
        """What ``apply`` multiplies a gradient of that norm with."""
        ...


class PairedTraining:
    """The answers of :class:`~mixgym.envs.learners.causal_lm.CausalLM` (its base class)."""

    if TYPE_CHECKING:
        model: Any
        sources: Sequence[Source]
        shape: tuple[int, int]
        device: str
        _optimizer: torch.optim.Optimizer
        _training: TrainingOptions
        _matmul: Matmul
        _seed: int
        _max_length: int
        _progress: float
        _evaluations: dict[str, list[Batch]]
        _ranks: DataParallel
        _micro_batches: Callable[[tuple[Pack, ...]], list[Batch]]
        _accumulate: Callable[[list[Batch]], tuple[FloatArray, float]]
        _token_losses: Callable[..., torch.Tensor]
        _by_cell: Callable[[torch.Tensor, Batch], FloatArray]
        _dropout_stream: Callable[[int], AbstractContextManager[None]]
        _optimizer_of: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
        _packs_together: Callable[[], int]

    @property
    def source_names(self) -> tuple[str, ...]:
        """See :class:`Pairable`."""
        return tuple(source.name for source in self.sources)

    @property
    def progress(self) -> float:
        """See :class:`Pairable`."""
        return self._progress

    @property
    def optimizer(self) -> "torch.optim.Optimizer":
        """See :class:`Pairable`."""
        return self._optimizer

    @property
    def base_rate(self) -> float:
        """See :class:`Pairable`."""
        return self._training.learning_rate

    def parameters(self) -> "dict[str, torch.Tensor]":
        """See :class:`Pairable`."""
        ours = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if id(p) in ours}

    def blocks(self) -> list[list[str]]:
        """See :class:`Pairable`: the children of the largest list of modules.

        Raises:
            ConfigError: if the model is not made of a list of blocks.
        """
        import torch

        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.ModuleList)
        }
        if not lists:
            raise ConfigError(
                f"{type(self.model).__name__} has no list of blocks to draw from: leave "
                "bilevel.blocks out, and bilevel.storage other than top"
            )
        largest = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
        names = list(self.parameters())
        return [
            [name for name in names if name.startswith(f"{largest}.{i}.")]
            for i in range(len(lists[largest]))
        ]

    def source_counts(self, packs: tuple[Pack, ...]) -> FloatArray:
        """See :class:`Pairable`."""
        counts = np.zeros(self.shape[0])
        mine, shard = self._ranks.mine(packs)
        for pack in mine:
            for source, _, row in pack.rows.tolist():
                counts[source] += self.sources[source].splits["train"].row(row)[1].sum()
        return counts / shard.degree  # ranks that share a pack count it together

    def even_packs(self, index: int) -> tuple[Pack, ...]:
        """See :class:`Pairable`."""
        trained = [k for k, source in enumerate(self.sources) if len(source.splits["train"])]
        share = self._training.packs * self._max_length / len(trained)
        drawn = [self._rows_in_turn(k, share * index, share * (index + 1)) for k in trained]
        return tuple(pack_rows(np.concatenate(drawn), self.sources, "train", self._max_length))

    def _rows_in_turn(self, k: int, start: float, end: float) -> IntArray:
        """int64[n, 3], rows of source k whose last token is one of (start, end].

        Tokens are counted over pass after pass through the source, each in an order of its own.
        """
        source = self.sources[k]
        lengths = source.splits["train"].lengths
        total, found = int(lengths.sum()), []
        for turn in range(int(start // total), int(end // total) + 1):
            order = stream(self._seed, "look", source.name, str(turn)).permutation(len(lengths))
            ends = turn * total + np.cumsum(lengths[order])
            found.append(order[(start < ends) & (ends <= end)])
        rows = np.concatenate(found)
        return np.stack([np.full(len(rows), k), source.strata["train"][rows], rows], axis=1)

    def accumulate_weighted(
        self, packs: tuple[Pack, ...], weights: FloatArray | None
    ) -> tuple[FloatArray, float]:
        """See :class:`Pairable`."""
        batches = self._micro_batches(packs)
        return self._accumulate(
            batches if weights is None else reweighted(batches, weights, self.shape)
        )

    def validate(self, index: int, packs: int | None, scale: float) -> float:
        """See :class:`Pairable`; batches are cycled, in an order of the seed."""
        total = 0.0
        batches = self._validation_batch(index, packs or self._training.packs)
        for part, batch in enumerate(batches):
            with self._dropout_stream(VALIDATION_DRAWS + part), matmul(self._matmul):
                loss = (self._token_losses(batch) * batch.weights).sum()
                (scale * loss).backward()
            total += float(loss.detach())
        return total

    def losses(self, packs: tuple[Pack, ...]) -> FloatArray:
        """See :class:`Pairable`."""
        import torch

        total = np.zeros(self.shape)
        for part, batch in enumerate(self._micro_batches(packs)):
            with torch.no_grad(), self._dropout_stream(part), matmul(self._matmul):
                total += self._by_cell(self._token_losses(batch), batch)
        return total

    def slopes(self, packs: tuple[Pack, ...], direction: Tensors) -> FloatArray:
        """See :class:`Pairable`; attention takes the kernel that has a forward derivative."""
        import torch
        from torch.autograd import forward_ad
        from torch.nn.attention import SDPBackend, sdpa_kernel

        load_forward_mode()
        total = np.zeros(self.shape)
        own = self.parameters()
        for part, batch in enumerate(self._micro_batches(packs)):
            with (
                torch.no_grad(),
                self._dropout_stream(part),
                matmul(self._matmul),
                sdpa_kernel(SDPBackend.MATH),
                forward_ad.dual_level(),
            ):
                duals = {
                    name: forward_ad.make_dual(own[name].detach(), tangent)
                    for name, tangent in direction.items()
                }
                losses = self._token_losses(batch, Bound(self.model, duals))
                slope = forward_ad.unpack_dual(losses).tangent
                total += self._by_cell(torch.zeros_like(losses) if slope is None else slope, batch)
        return total

    def make_optimizer(self, parameters: Tensors) -> "torch.optim.Optimizer":
        """See :class:`Pairable`."""
        return self._optimizer_of(list(parameters.values()))

    def rate(self) -> float:
        """See :class:`Pairable`."""
        return self.base_rate * learning_rate_factor(self._progress, self._training)

    def clip_factor(self, norm: float) -> float:
        """See :class:`Pairable`."""
        limit = self._training.clip
        return 1.0 if limit is None else min(1.0, limit / (norm + CLIP_MARGIN))

    def _validation_batch(self, index: int, packs: int) -> list[Batch]:
        """The forward passes of a validation batch of ``packs`` packs; its weights sum to 1."""
        groups = [
            name for name in self._evaluations if name.startswith(f"{VALIDATION}:{packs}:")
        ] or self._make_validation(packs)
        return self._evaluations[groups[index % len(groups)]]

    def _make_validation(self, packs: int) -> list[str]:
        """Lay out the validation rows of all targets; the names of the batches."""
        check_validation(self.sources)
        targets = [
            source
            if source.target > 0 and VALIDATION in source.splits
            else without_validation(source)
            for source in self.sources
        ]
        laid = evaluation_packs(targets, VALIDATION, self._max_length)
        order = stream(self._seed, VALIDATION).permutation(len(laid))
        splits = [source.splits[VALIDATION] for source in targets]
        supervised = [max(int(split.supervised.sum()), 1) for split in splits]
        per_token = np.array([s.target for s in targets]) / supervised
        names = []
        for start in range(0, len(laid), packs):
            chosen = [laid[i] for i in order[start : start + packs]]
            names.append(f"{VALIDATION}:{packs}:{start}")
            together = self._packs_together()
            batches = [
                make_batch(chosen[i : i + together], splits, self.shape[1], self.device)
                for i in range(0, len(chosen), together)
            ]
            self._evaluations[names[-1]] = _scaled(batches, per_token, self.shape[1])
        return names


def load_forward_mode() -> None:
    """Import what torch needs for forward mode; it compiles a few functions, at the first time."""
    with warnings.catch_warnings():  # it uses what it has deprecated itself
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


class Bound:
    """A model called with other tensors in the place of its parameters."""

    def __init__(self, model: Any, tensors: Tensors) -> None:
        self.config = model.config
        self._model, self._tensors = model, dict(tensors)

    def __call__(self, **arguments: Any) -> Any:
        """Call it."""
        from torch.func import functional_call

        return functional_call(self._model, self._tensors, (), arguments)


def reweighted(batches: list[Batch], weights: FloatArray, shape: tuple[int, int]) -> list[Batch]:
    """The batches with token weights under which source j counts ``weights[j]`` in all.

    Counts are those of the global batch, over all micro-steps and ranks.
    """
    counts = np.zeros(shape[0])
    for batch in batches:
        own = batch.weights.double().cpu().numpy()
        counts += np.bincount(batch.cells // shape[1], own, minlength=shape[0])
    counts = summed(counts)
    return _scale(
        batches, np.where(counts > 0, weights / np.maximum(counts, 1e-300), 0.0), shape[1]
    )


def _scaled(batches: list[Batch], per_token: FloatArray, groups: int) -> list[Batch]:
    """The batches with weights ``per_token`` by source, normalised to a sum of 1."""
    scaled = _scale(batches, per_token, groups)
    total = sum(float(batch.weights.double().sum()) for batch in scaled)
    return _scale(scaled, np.full(len(per_token), 1.0 / total), groups)


def _scale(batches: list[Batch], factors: FloatArray, groups: int) -> list[Batch]:
    """The batches with every token's weight times the factor of its source."""
    import torch

    changed = []
    for batch in batches:
        factor = torch.from_numpy(factors[batch.cells // groups]).to(batch.weights)
        changed.append(replace(batch, weights=batch.weights * factor))
    return changed
