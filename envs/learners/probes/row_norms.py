"""Norms of every row's own gradient, of the last block's matrices, in one pass over packed rows.

Rows that are packed together do not see each other, so the gradient at the output of a layer,
taken once for the sum of all rows' mean losses, holds every row's own in that row's place. A row's
gradient of a weight is then the product of its inputs with its output gradients, whose norm needs
no pass of its own (as in the literature on per-example clipping: Goodfellow, 2015; Li et al.,
2022). Biases count; the gains of normalisation layers are left out.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.batching import RowBatch
from mixgym.envs.learners.models.precision import evaluation_mode
from mixgym.envs.learners.probes.probed import Probed

if TYPE_CHECKING:
    import torch

    Pairs = list[tuple[torch.Tensor, torch.Tensor, bool]]


def last_block(model: Any) -> Any:
    """The last of the model's layers."""
    import torch

    layers = int(model.config.get_text_config().num_hidden_layers)
    stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    return stacks[0][-1]


def row_norms(probed: Probed, batches: list[RowBatch]) -> FloatArray:
    """float64[rows], in the order of the batches' documents.

    Raises:
        ConfigError: if a layer of the block does not see the tokens in their order (experts do
            not): ``gradient_norm_examples`` works for any model.
    """
    layers = matrices(last_block(probed.trained.module))
    with evaluation_mode(probed.trained.module):
        return np.concatenate([_norms(probed, layers, one) for one in batches])


def matrices(block: Any) -> list[Any]:
    """The linear layers of a block, whichever way their weights lie."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return [m for m in block.modules() if isinstance(m, Linear | Conv1D)]


def _norms(probed: Probed, layers: list[Any], one: RowBatch) -> FloatArray:
    import torch

    lengths = list(one.batch.document_lengths)
    seen: list[tuple[Any, Any, bool]] = []
    handles = [
        layer.register_forward_hook(
            lambda m, inputs, output: seen.append((inputs[0], output, m.bias is not None))
        )
        for layer in layers
    ]
    try:
        losses = probed.token_losses(one.batch)
    finally:
        for handle in handles:
            handle.remove()
    # L = sum over rows r of (1 / n_r) sum_(t in r) l_t: its slopes at row r's tokens are those of
    # r's own mean loss, for rows do not see each other
    count = np.bincount(one.rows)[one.rows]
    loss = (losses / torch.from_numpy(count).to(losses.device, losses.dtype)).sum()
    gradients = torch.autograd.grad(loss, [output for _, output, _ in seen])
    pairs = [(x.detach(), d, bias) for (x, _, bias), d in zip(seen, gradients, strict=True)]
    return np.sqrt(sum(_squares(*pair, lengths) for pair in pairs))


def _squares(
    inputs: "torch.Tensor", slopes: "torch.Tensor", has_bias: bool, lengths: list[int]
) -> FloatArray:
    """float64[documents], squared norm of each one's gradient of a weight and its bias."""
    if inputs.shape[:-1] != (1, sum(lengths)):
        raise ConfigError(
            "environment.probes: gradient_norm_examples_last does not work for this model, whose "
            "last block takes tokens apart: use gradient_norm_examples"
        )
    found = []
    for x, d in zip(inputs[0].split(lengths), slopes[0].split(lengths), strict=True):
        x, d = x.float(), d.float()
        # the gradient of the weight is W = x^T d, x [n, in] and d [n, out]; |W|^2 either of itself,
        # n in out operations, or as sum_(s, t) (x x^T)_st (d d^T)_st, n^2 (in + out) of them
        if len(x) ** 2 * (x.shape[1] + d.shape[1]) < len(x) * x.shape[1] * d.shape[1]:
            square = ((x @ x.T) * (d @ d.T)).sum()
        else:
            square = (x.T @ d).square().sum()
        # the bias adds |sum_t d_t|^2
        found.append(float(square) + (float(d.sum(0).square().sum()) if has_bias else 0.0))
    return np.maximum(np.array(found), 0.0)
