"""A causal LM and how it computes: device, attention, precision; every loss comes from here."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.learners.batching import Batch, RowBatch
from mixgym.envs.learners.models.attention import DOCUMENTS, choose_attention, packed_forward
from mixgym.envs.learners.models.precision import evaluation_mode, matmul
from mixgym.envs.learners.parallel.sequence_parallel import WHOLE
from mixgym.envs.options import ModelOptions

if TYPE_CHECKING:
    import torch

_MEASURED_TOKENS = 4096  # in one forward pass of a measurement, at most
_MEASURED_LOGITS = 50_000_000  # likewise: bounds its memory where the vocabulary is large


class LanguageModel:
    """A model on its device, with the attention and the precision that were asked for.

    Args:
        module: a causal LM of transformers, in float32.
        options: attention, precision, library of matrix products.
        device: where it computes.
        longest: tokens of the longest document there will be.

    Attributes:
        attention: the implementation that was chosen.

    Raises:
        PackingError: if no attention implementation keeps documents of this model apart.
    """

    def __init__(
        self, module: Any, options: ModelOptions, device: "torch.device", longest: int
    ) -> None:
        self.module = module.to(device)
        self.options, self.device = options, device
        self.attention = choose_attention(
            self.module,
            options.attention,
            device.type,
            longest,
            bf16=options.precision == "bf16",
        )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Matrix products by the library that was asked for."""
        with matmul(self.options.fp32_matmul):
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Evaluation mode, no gradients; afterwards every module is in the mode it was in."""
        import torch

        with evaluation_mode(self.module), torch.no_grad(), self.computing():
            yield

    def token_losses(self, batch: Batch, module: Any = None) -> "torch.Tensor":
        """float32[n], NLL of every supervised token, under the module or another one."""
        import torch

        bf16 = self.options.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = packed_forward(
                self.module if module is None else module,
                batch.input_ids,
                batch.position_ids,
                batch.document_lengths,
                logits_to_keep=batch.predictors,
                sequence=batch.sequence or WHOLE,
            )
        wide = logits[0] if logits.dtype == torch.float64 else logits[0].float()
        return torch.nn.functional.cross_entropy(wide, batch.labels, reduction="none")

    def measured(self, batches: Iterable[Batch]) -> list[FloatArray]:
        """Of each batch float64[n], NLL of its supervised tokens; the model is left as it was."""
        with self.measuring():
            return [self.token_losses(batch).cpu().double().numpy() for batch in batches]

    def row_losses(self, batches: Sequence[RowBatch], count: int) -> FloatArray:
        """float64[count], mean NLL of the supervised tokens of each row; 0 for one without any.

        Args:
            batches: that the rows were laid out in, each row in one of them.
            count: how many rows there are.
        """
        sums, tokens = np.zeros(count), np.zeros(count)
        losses = self.measured(one.batch for one in batches)
        for one, found in zip(batches, losses, strict=True):
            sums += np.bincount(one.rows, found, count)
            tokens += np.bincount(one.rows, minlength=count)
        return sums / np.maximum(tokens, 1)

    @property
    def joins(self) -> bool:
        """Whether packs can share a row at no cost (no mask that grows with its square)."""
        return self.attention == DOCUMENTS or "flash" in self.attention

    @property
    def vocabulary(self) -> int:
        """Entries of the model's vocabulary."""
        return int(self.module.config.get_text_config().vocab_size)

    @property
    def tokens_together(self) -> int:
        """Tokens in one forward pass of a measurement, all of which may be supervised."""
        return min(_MEASURED_TOKENS, _MEASURED_LOGITS // self.vocabulary) if self.joins else 1

    def packs_together(self, capacity: int) -> int:
        """Packs of a capacity in one forward pass of a measurement."""
        return max(1, self.tokens_together // capacity)
