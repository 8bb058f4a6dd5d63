"""The optimiser of a model, its schedule and its clipping."""

import copy
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import DivergenceError
from mixgym.envs.learners.learning_rate import learning_rate_factor
from mixgym.envs.learners.models.trained_model import TrainedModel
from mixgym.envs.options import TrainingOptions

if TYPE_CHECKING:
    import torch

_CLIP_MARGIN = 1e-6  # what torch adds to a norm before it divides by it


class Optimisation:
    """Takes the optimiser's steps.

    Args:
        trained: whose parameters move.
        options: rate, schedule, decay, clipping.

    Attributes:
        optimizer: AdamW of torch.
        steps: taken in this episode.
        progress: share of the budget used before the current step, in [0, 1].
    """

    def __init__(self, trained: TrainedModel, options: TrainingOptions) -> None:
        self.options = options
        self._trained = trained
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self.optimizer: torch.optim.Optimizer = self.make(self._trained.parameters().values())
        self.steps = 0
        self.progress = 0.0

    def make(self, parameters: "Iterable[torch.Tensor]") -> "torch.optim.Optimizer":
        """AdamW with these settings; no decay on biases and norms."""
        import torch

        parameters = list(parameters)
        decayed = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.options.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.options.learning_rate,
            betas=self.options.betas,
            fused=self._trained.language.device.type in ("cpu", "cuda"),
        )

    def rate(self) -> float:
        """Learning rate of the current step."""
        return self.options.learning_rate * learning_rate_factor(self.progress, self.options)

    def apply(self) -> float:
        """Clip, step the optimiser and the schedule, clear gradients; return the norm.

        Raises:
            DivergenceError: if the gradient is not finite; nothing was changed.
        """
        import torch

        limit = self.options.clip if self.options.clip is not None else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained.module.parameters(), limit))
        if not math.isfinite(norm):
            self.refuse(f"the gradient norm is {norm}")
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

    def clip_factor(self, norm: float) -> float:
        """What :meth:`apply` multiplies a gradient of that norm with."""
        limit = self.options.clip
        return 1.0 if limit is None else min(1.0, limit / (norm + _CLIP_MARGIN))

    def refuse(self, why: str) -> None:
        """Drop the gradients of a step that cannot be taken.

        Raises:
            DivergenceError: always; parameters are as they were.
        """
        self.optimizer.zero_grad(set_to_none=True)
        raise DivergenceError(f"{why} at step {self.steps + 1}")

    def state(self) -> dict[str, Any]:
        """What :meth:`set_state` continues from; the optimiser's tensors are not copies."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "progress": self.progress,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`, which is left as it is."""
        self.reset()
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.steps = int(state["steps"])
        self.progress = float(state["progress"])
