"""Which blocks of a model train now: layer-wise sampling, one draw for both models of a pair.

A pair whose models train different blocks drifts apart, and the difference of their losses, which
the weights learn from, then measures the draw. So there is one draw, and both models train by it:
Pan et al. 2024 (arXiv 2402.09919, LISA) draw per model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.errors import ConfigError
from mixgym.envs.random_streams import stream

if TYPE_CHECKING:
    import torch

MEMORY = 0.9  # of the running norm of a block's gradient


class BlockDraws:
    """Draws ``count`` of a model's blocks every ``period`` steps, the first time at step 0.

    Importance of a block is the running mean of the root mean square of its gradient, of the steps
    in which it trained. Blocks that never trained come first; then the chance of a block in each
    pick is proportional to its importance.

    Args:
        count: blocks that train at a time; None: all, always.
        period: steps between draws.
        choice: ``uniform`` or ``importance``.
        outside: whether what is in no block (embeddings, final norm, head) trains.
        seed: of the draws.
    """

    def __init__(
        self,
        count: int | None,
        period: int,
        choice: Literal["uniform", "importance"] = "uniform",
        outside: Literal["trained", "frozen"] = "trained",
        seed: int = 0,
    ) -> None:
        self.count = count
        self._period = period
        self._choice = choice
        self._outside = outside
        self._seed = seed
        self._active: list[int] = []
        self._norms: list[float] = []  # of every block; 0: it never trained

    def draw(self, step: int, blocks: Sequence[Sequence[str]]) -> None:
        """Draw anew if it is time.

        Raises:
            ConfigError: if there are fewer blocks than are to be drawn.
        """
        if self.count is None or (self._active and step % self._period):
            return
        if self.count > len(blocks):
            raise ConfigError(
                f"bilevel.blocks={self.count}: the model has {len(blocks)} blocks; ask for fewer, "
                "or leave it out to train all"
            )
        self._norms = self._norms or [0.0] * len(blocks)
        random = stream(self._seed, "blocks", str(step // self._period))
        self._active = sorted(self._pick(random, len(blocks)).tolist())

    def _pick(self, random: np.random.Generator, blocks: int) -> NDArray[np.int64]:
        if self._choice == "uniform":
            return random.choice(blocks, self.count, replace=False)
        # exponential races: the first arrivals are a weighted draw without replacement
        arrivals = random.exponential(size=blocks)
        norms = np.array(self._norms)
        arrivals = np.where(norms > 0, 1.0 + arrivals / np.maximum(norms, 1e-300), -arrivals)
        return np.argsort(arrivals)[: self.count]

    def frozen(self, names: Sequence[str], blocks: Sequence[Sequence[str]]) -> set[str]:
        """Names of the parameters that do not train now."""
        if self.count is None:
            return set()
        trained = {name for index in self._active for name in blocks[index]}
        inside = {name for block in blocks for name in block}
        if self._outside == "trained":
            return inside - trained
        return set(names) - trained

    def observe(
        self, parameters: "Mapping[str, torch.Tensor]", blocks: Sequence[Sequence[str]]
    ) -> None:
        """Take note of the gradients that the active blocks have now."""
        if self.count is None or self._choice == "uniform":
            return
        for index in self._active:
            gradients = [g for n in blocks[index] if (g := parameters[n].grad) is not None]
            size = sum(g.numel() for g in gradients)
            norm = float(np.sqrt(sum(float(g.double().square().sum()) for g in gradients) / size))
            known = self._norms[index]
            self._norms[index] = MEMORY * known + (1 - MEMORY) * norm if known else norm

    def snapshot(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` continues exactly."""
        return {"active": list(self._active), "norms": list(self._norms)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a snapshot."""
        self._active, self._norms = list(state["active"]), list(state["norms"])


@contextmanager
def without_gradients(parameters: "Mapping[str, torch.Tensor]", names: set[str]) -> Iterator[None]:
    """Freeze parameters inside the block, so that the backward pass stops above them.

    Only inside a step: an optimiser that is built or copied between steps knows them all.
    """
    changed = [parameters[name] for name in names if parameters[name].requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
