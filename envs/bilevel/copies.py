"""The second model of a pair: what is kept of it, and how it lends itself to the first's modules.

A copy never is a module. Its tensors are put in the place of the model's while losses and gradients
are found, and taken out again: an exchange of pointers, exact and without cost. Values are kept in
full (all parameters, or those of the top blocks), or as a difference d to the model, w = u + d /
alpha, in full or of low rank; the difference obeys its own equation, whose conditioning does not
depend on alpha.
"""

import copy as copying
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mixgym.envs.bilevel.blocks import without_gradients
from mixgym.envs.learners.pairing import Pairable, Tensors

Gradients = dict[str, torch.Tensor]
LEFT, RIGHT = ":A", ":B"  # behind the name of a matrix, its two factors


class Copy(ABC):
    """The second model of a pair.

    Attributes:
        names: of the parameters in which it differs from the first.
    """

    names: tuple[str, ...]
    _own: dict[str, torch.Tensor]
    _optimizer: torch.optim.Optimizer

    @abstractmethod
    def values(self, parameters: Tensors, alpha: float) -> dict[str, torch.Tensor]:
        """Its tensors; they may share memory with the copy, and are not to be changed."""

    @abstractmethod
    def gather(self, gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
        """What :meth:`step` wants, from its gradients and those that ``parameters`` hold.

        The memory of ``gradients`` is used for it.
        """

    def step(self, gathered: Gradients, rate: float, factor: float) -> None:
        """Step its optimiser at a learning rate, gradients multiplied with ``factor``."""
        for name, gradient in gathered.items():
            self._own[name].grad = gradient.mul_(factor) if factor != 1.0 else gradient
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the optimiser's state of these parameters."""
        dropped = set(names)
        for name, value in self._own.items():
            if name.removesuffix(LEFT).removesuffix(RIGHT) in dropped:
                self._optimizer.state.pop(value, None)

    def snapshot(self) -> dict[str, Any]:
        """Its tensors and its optimiser, copied."""
        return {
            "values": {name: value.detach().clone() for name, value in self._own.items()},
            "optimizer": copying.deepcopy(self._optimizer.state_dict()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        with torch.no_grad():
            for name, value in state["values"].items():
                self._own[name].copy_(value)
        self._optimizer.load_state_dict(copying.deepcopy(state["optimizer"]))


class Values(Copy):
    """A copy that is kept as values.

    Args:
        model: the first model; its values and the state of its optimiser are copied.
        names: of the parameters that the copy has of its own.
    """

    def __init__(self, model: Pairable, names: Iterable[str]) -> None:
        self.names = tuple(names)
        theirs = model.parameters()
        self._own = {n: torch.nn.Parameter(theirs[n].detach().clone()) for n in self.names}
        self._optimizer = model.make_optimizer(self._own)
        for name, value in self._own.items():
            if theirs[name] in model.optimizer.state:
                state = copying.deepcopy(model.optimizer.state[theirs[name]])
                self._optimizer.state[value] = state

    def values(self, parameters: Tensors, alpha: float) -> dict[str, torch.Tensor]:
        """See :class:`Copy`."""
        return {name: value.data for name, value in self._own.items()}

    def gather(self, gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
        """See :class:`Copy`."""
        return gradients


class Difference(Copy):
    """A copy that is kept as d = alpha (w - u), at the start 0.

    The gradient of d is alpha (G_w - G_u), with G_w the gradient of L2 + L1 / alpha at w: what
    remains of the copy's own descent when the model's is taken away. There is no weight decay.
    """

    def __init__(self, model: Pairable, names: Iterable[str]) -> None:
        self.names = tuple(names)
        theirs = model.parameters()
        self._own = {n: torch.nn.Parameter(torch.zeros_like(theirs[n])) for n in self.names}
        self._optimizer = _without_decay(model.make_optimizer(self._own))

    def values(self, parameters: Tensors, alpha: float) -> dict[str, torch.Tensor]:
        """See :class:`Copy`."""
        with torch.no_grad():
            return {n: torch.add(parameters[n], d, alpha=1 / alpha) for n, d in self._own.items()}

    def gather(self, gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
        """See :class:`Copy`."""
        return differences(gradients, parameters, alpha)


class LowRank(Copy):
    """A difference d whose matrices are products A B of a small rank; vectors are kept in full.

    Args:
        model: the first model.
        names: of the parameters in which the copy differs.
        rank: of every matrix.
        generator: of A; B starts at 0, so d does.
    """

    def __init__(
        self, model: Pairable, names: Iterable[str], rank: int, generator: np.random.Generator
    ) -> None:
        self.names = tuple(names)
        self._own: dict[str, torch.Tensor] = {}
        for name, value in ((n, model.parameters()[n].detach()) for n in self.names):
            if value.ndim != 2:
                self._own[name] = torch.nn.Parameter(torch.zeros_like(value))
                continue
            size = min(rank, *value.shape)
            drawn = generator.standard_normal((value.shape[0], size)) / np.sqrt(size)
            left = torch.from_numpy(drawn).to(value)
            self._own[name + LEFT] = torch.nn.Parameter(left)
            right = value.new_zeros((size, value.shape[1]))
            self._own[name + RIGHT] = torch.nn.Parameter(right)
        self._optimizer = _without_decay(model.make_optimizer(self._own))

    def values(self, parameters: Tensors, alpha: float) -> dict[str, torch.Tensor]:
        """See :class:`Copy`."""
        with torch.no_grad():
            return {
                n: torch.add(parameters[n], self._whole(n), alpha=1 / alpha) for n in self.names
            }

    def _whole(self, name: str) -> torch.Tensor:
        if name in self._own:
            return self._own[name]
        return self._own[name + LEFT] @ self._own[name + RIGHT]

    def gather(self, gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
        """See :class:`Copy`; the chain rule through A B."""
        found: Gradients = {}
        for name, gradient in differences(gradients, parameters, alpha).items():
            if name in self._own:
                found[name] = gradient
                continue
            left, right = self._own[name + LEFT], self._own[name + RIGHT]
            found[name + LEFT] = gradient @ right.detach().T
            found[name + RIGHT] = left.detach().T @ gradient
        return found


@contextmanager
def lent(parameters: Tensors, values: Tensors) -> Iterator[None]:
    """Put ``values`` in the place of the parameters' own inside the block.

    Parameters that have no value of their own there are shared, and need no gradient.
    """
    kept = {name: parameters[name].data for name in values}
    for name, value in values.items():
        parameters[name].data = value
    try:
        with without_gradients(parameters, parameters.keys() - values.keys()):
            yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value


def take_gradients(parameters: Tensors) -> Gradients:
    """The gradients that parameters hold; afterwards they hold none."""
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def differences(gradients: Gradients, parameters: Tensors, alpha: float) -> Gradients:
    """Find alpha (gradients - those that parameters hold), in the memory of ``gradients``."""
    for name, gradient in gradients.items():
        theirs = parameters[name].grad
        if theirs is not None:
            gradient.sub_(theirs)
        gradient.mul_(alpha)
    return gradients


def _without_decay(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser without weight decay."""
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    return optimizer
