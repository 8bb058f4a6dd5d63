"""The model that is trained: which parameters, and how it is made, reset, saved and loaded.

The one place where a model that is trained in part, or lies on several devices, would differ.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.learners.models.model_source import check_no_adapters
from mixgym.envs.learners.models.precision import check_onednn
from mixgym.envs.learners.parallel.data_parallel import can_recompute, recompute_layers
from mixgym.envs.options import ModelOptions

if TYPE_CHECKING:
    import torch

KEPT_PARAMETERS = 20_000_000  # models up to this size keep a copy of their starting weights


class TrainedModel:
    """A causal LM that is trained.

    Args:
        make: gives the model, in float32, always with the same weights.
        tokenizer: saved beside it.
        options: attention, precision, checkpointing.
        device: where it computes.
        longest: tokens of the longest document there will be.

    Attributes:
        language: the model as it computes.
        drops: whether it has dropout.
        recomputes: whether all layers recompute their activations in training.

    Raises:
        ConfigError: if ``fp32_matmul=onednn`` would round on this machine, or for a model with
            adapters in it.
        PackingError: if no attention implementation keeps documents of this model apart.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        tokenizer: Any,
        options: ModelOptions,
        device: "torch.device",
        longest: int,
    ) -> None:
        if options.fp32_matmul == "onednn":
            check_onednn()
        self._make, self.tokenizer = make, tokenizer
        module = make()
        check_no_adapters(type(module).__name__, module)
        self.language = LanguageModel(module, options, device, longest)
        self._names = {n for n, p in self.module.named_parameters() if p.requires_grad}
        self.drops = _has_dropout(self.module)
        self.recomputes = options.gradient_checkpointing
        self._recomputed = 0  # layers, where packs say how many
        if self.recomputes:
            can_recompute(self.module)
        self._start = self.state() if self.module.num_parameters() <= KEPT_PARAMETERS else None

    @property
    def module(self) -> Any:
        """The model of transformers."""
        return self.language.module

    def parameters(self) -> "dict[str, torch.nn.Parameter]":
        """The trained parameters by name, each once, whether frozen for the moment or not."""
        return {n: p for n, p in self.module.named_parameters() if n in self._names}

    def reset(self) -> None:
        """Back to the weights at the start: kept where small, built anew elsewhere."""
        self.set_state(self._start or self._make().state_dict())

    def state(self) -> "dict[str, torch.Tensor]":
        """A copy of all weights, for :meth:`set_state`."""
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def set_state(self, state: "dict[str, torch.Tensor]") -> None:
        """Continue with these weights."""
        self.module.load_state_dict(state)

    def fork(self) -> "TrainedModel":
        """An independent copy with the same weights."""
        other = copy.copy(self)
        other.language = copy.copy(self.language)
        other.language.module = copy.deepcopy(self.module)
        return other

    def save(self, folder: Path) -> None:
        """Write model and tokenizer, loadable by ``from_pretrained`` without this package."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take the weights of a folder that :meth:`save` wrote."""
        import torch
        from transformers import AutoModelForCausalLM

        saved: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.set_state(saved.state_dict())

    def recompute(self, layers: int) -> None:
        """Let the first layers recompute their activations, unless all of them do anyway."""
        if self.recomputes or layers == self._recomputed:
            return
        if not self._recomputed:
            can_recompute(self.module)
        recompute_layers(self.module, layers)
        self._recomputed = layers


def _has_dropout(module: Any) -> bool:
    import torch

    layers = (m for m in module.modules() if isinstance(m, torch.nn.Dropout))
    rates = [
        value
        for name, value in module.config.get_text_config().to_dict().items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float)
    ]
    return any(layer.p > 0 for layer in layers) or any(rate > 0 for rate in rates)
