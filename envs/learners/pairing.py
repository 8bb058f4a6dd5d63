"""What a bilevel step rule asks of a model, beside the two halves of a step.

The rule keeps a second model beside the first and lends the second one's tensors to the same
modules, so that batch, dropout draws and precision are those of the first by construction.
:mod:`mixgym.envs.learners.paired_steps` is how a causal LM answers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mixgym.envs.arrays import FloatArray
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.base import Trainable

if TYPE_CHECKING:
    import torch

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
