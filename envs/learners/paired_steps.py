"""The optimiser steps of a causal LM, with all that a bilevel step rule asks besides.

Nothing here knows about source weights or a second model: it computes under tensors that it is
lent.
"""

import importlib
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.batching import Batch, evaluation_packs, pack_rows, sum_by_cell
from mixgym.envs.learners.held_out import HeldOut
from mixgym.envs.learners.pairing import Tensors
from mixgym.envs.learners.steps import OptimiserSteps
from mixgym.envs.random_streams import stream
from mixgym.envs.ranks import summed
from mixgym.envs.sources.splits import VALIDATION, check_validation, without_validation

if TYPE_CHECKING:
    import torch

_VALIDATION_DRAWS = 1_000_000  # names the dropout draws of validation batches among micro-steps


class PairedSteps:
    """The steps of a model that can be trained beside a copy.

    See :class:`~mixgym.envs.learners.pairing.Pairable`.

    Args:
        halves: of a step.
        held_out: lays out the validation rows.
        max_length: tokens in a pack.
    """

    def __init__(self, halves: OptimiserSteps, held_out: HeldOut, max_length: int) -> None:
        self.halves, self._held_out, self._max_length = halves, held_out, max_length
        self._trained, self._optimisation = halves.trained, halves.optimisation
        self._language = halves.trained.language
        self._sources, self._shape = halves.sources, halves.shape

    def accumulate(self, packs: tuple[Pack, ...]) -> tuple[FloatArray, float]:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        return self.halves.accumulate(packs)

    def apply(self) -> float:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        return self.halves.apply()

    @property
    def source_names(self) -> tuple[str, ...]:
        """See :class:`Pairable`."""
        return tuple(source.name for source in self._sources)

    @property
    def progress(self) -> float:
        """See :class:`Pairable`."""
        return self._optimisation.progress

    @property
    def optimizer(self) -> "torch.optim.Optimizer":
        """See :class:`Pairable`."""
        return self._optimisation.optimizer

    @property
    def base_rate(self) -> float:
        """See :class:`Pairable`."""
        return self._optimisation.options.learning_rate

    def parameters(self) -> "dict[str, torch.Tensor]":
        """See :class:`Pairable`."""
        return {**self._trained.parameters()}

    def blocks(self) -> list[list[str]]:
        """See :class:`Pairable`: the children of the largest list of modules.

        Raises:
            ConfigError: if the model is not made of a list of blocks.
        """
        import torch

        lists = {
            name: module
            for name, module in self._trained.module.named_modules()
            if isinstance(module, torch.nn.ModuleList)
        }
        if not lists:
            raise ConfigError(
                f"{type(self._trained.module).__name__} has no list of blocks to draw from: leave "
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
        counts = np.zeros(self._shape[0])
        mine, shard = self.halves.ranks.mine(packs)
        for pack in mine:
            for source, _, row in pack.rows.tolist():
                counts[source] += self._sources[source].splits["train"].row(row)[1].sum()
        return counts / shard.degree  # ranks that share a pack count it together

    def even_packs(self, index: int) -> tuple[Pack, ...]:
        """See :class:`Pairable`."""
        trained = [k for k, source in enumerate(self._sources) if len(source.splits["train"])]
        share = self._optimisation.options.packs * self._max_length / len(trained)
        drawn = [self._rows_in_turn(k, share * index, share * (index + 1)) for k in trained]
        return tuple(pack_rows(np.concatenate(drawn), self._sources, "train", self._max_length))

    def _rows_in_turn(self, k: int, start: float, end: float) -> IntArray:
        """int64[n, 3], rows of source k whose last token is one of (start, end].

        Tokens are counted over pass after pass through the source, each in an order of its own.
        """
        source = self._sources[k]
        lengths = source.splits["train"].lengths
        total, found = int(lengths.sum()), []
        for turn in range(int(start // total), int(end // total) + 1):
            order = stream(self.halves.seed, "look", source.name, str(turn)).permutation(
                len(lengths)
            )
            ends = turn * total + np.cumsum(lengths[order])
            found.append(order[(start < ends) & (ends <= end)])
        rows = np.concatenate(found)
        return np.stack([np.full(len(rows), k), source.strata["train"][rows], rows], axis=1)

    def accumulate_weighted(
        self, packs: tuple[Pack, ...], weights: FloatArray | None
    ) -> tuple[FloatArray, float]:
        """See :class:`Pairable`."""
        batches = self.halves.micro_batches(packs)
        return self.halves.accumulate_batches(
            batches if weights is None else _reweighted(batches, weights, self._shape)
        )

    def validate(self, index: int, packs: int | None, scale: float) -> float:
        """See :class:`Pairable`; batches are cycled, in an order of the seed."""
        total = 0.0
        batches = self._validation_batch(index, packs or self._optimisation.options.packs)
        for part, batch in enumerate(batches):
            with self.halves.dropout_stream(_VALIDATION_DRAWS + part), self._language.computing():
                loss = (self._language.token_losses(batch) * batch.weights).sum()
                (scale * loss).backward()
            total += float(loss.detach())
        return total

    def losses(self, packs: tuple[Pack, ...]) -> FloatArray:
        """See :class:`Pairable`."""
        import torch

        total = np.zeros(self._shape)
        for part, batch in enumerate(self.halves.micro_batches(packs)):
            with torch.no_grad(), self.halves.dropout_stream(part), self._language.computing():
                total += sum_by_cell(self._language.token_losses(batch), batch, self._shape)
        return total

    def slopes(self, packs: tuple[Pack, ...], direction: Tensors) -> FloatArray:
        """See :class:`Pairable`; attention takes the kernel that has a forward derivative."""
        import torch
        from torch.autograd import forward_ad
        from torch.nn.attention import SDPBackend, sdpa_kernel

        _load_forward_mode()
        total = np.zeros(self._shape)
        own = self.parameters()
        for part, batch in enumerate(self.halves.micro_batches(packs)):
            with (
                torch.no_grad(),
                self.halves.dropout_stream(part),
                self._language.computing(),
                sdpa_kernel(SDPBackend.MATH),
                forward_ad.dual_level(),
            ):
                duals = {
                    name: forward_ad.make_dual(own[name].detach(), tangent)
                    for name, tangent in direction.items()
                }
                losses = self._language.token_losses(batch, _Bound(self._trained.module, duals))
                slope = forward_ad.unpack_dual(losses).tangent
                found = torch.zeros_like(losses) if slope is None else slope
                total += sum_by_cell(found, batch, self._shape)
        return total

    def make_optimizer(self, parameters: Tensors) -> "torch.optim.Optimizer":
        """See :class:`Pairable`."""
        return self._optimisation.make(parameters.values())

    def rate(self) -> float:
        """See :class:`Pairable`."""
        return self._optimisation.rate()

    def clip_factor(self, norm: float) -> float:
        """See :class:`Pairable`."""
        return self._optimisation.clip_factor(norm)

    def _validation_batch(self, index: int, packs: int) -> list[Batch]:
        """The forward passes of a validation batch of ``packs`` packs; its weights sum to 1."""
        groups = [
            name for name in self._held_out.kept if name.startswith(f"{VALIDATION}:{packs}:")
        ] or self._make_validation(packs)
        return self._held_out.kept[groups[index % len(groups)]]

    def _make_validation(self, packs: int) -> list[str]:
        """Lay out the validation rows of all targets; the names of the batches."""
        check_validation(self._sources)
        targets = [
            source
            if source.target > 0 and VALIDATION in source.splits
            else without_validation(source)
            for source in self._sources
        ]
        laid = evaluation_packs(targets, VALIDATION, self._max_length)
        order = stream(self.halves.seed, VALIDATION).permutation(len(laid))
        splits = [source.splits[VALIDATION] for source in targets]
        supervised = [max(int(split.supervised.sum()), 1) for split in splits]
        per_token = np.array([s.target for s in targets]) / supervised
        names = []
        for start in range(0, len(laid), packs):
            chosen = [laid[i] for i in order[start : start + packs]]
            names.append(f"{VALIDATION}:{packs}:{start}")
            batches = self._held_out.lay_out(chosen, splits, self._language)
            self._held_out.kept[names[-1]] = _scaled(batches, per_token, self._shape[1])
        return names


def _load_forward_mode() -> None:
    """Import what torch needs for forward mode; it compiles a few functions, at the first time."""
    with warnings.catch_warnings():  # it uses what it has deprecated itself
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


class _Bound:
    """A model called with other tensors in the place of its parameters."""

    def __init__(self, model: Any, tensors: Tensors) -> None:
        self.config = model.config
        self._model, self._tensors = model, dict(tensors)

    def __call__(self, **arguments: Any) -> Any:
        """Call it."""
        from torch.func import functional_call

        return functional_call(self._model, self._tensors, (), arguments)


def _reweighted(batches: list[Batch], weights: FloatArray, shape: tuple[int, int]) -> list[Batch]:
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
