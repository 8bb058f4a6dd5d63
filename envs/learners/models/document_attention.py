"""Attention inside each of the documents that lie end to end in one row.

On CPU one document at a time (a dense block-diagonal mask costs several times as much), on a GPU
flash attention's kernel for documents of different lengths where there is one. It is known to
transformers as :data:`DOCUMENTS`. Whatever a layer asks for is computed or refused by name: nothing
is swallowed.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import PackingError
from mixgym.envs.learners.parallel.sequence_parallel import WHOLE, Shard, to_heads, to_tokens

if TYPE_CHECKING:
    import torch

DOCUMENTS = "mixgym_documents"

_HARMLESS = frozenset(
    {
        "position_ids",  # for flash kernels, and what rotary embeddings have used already
        "position_embeddings",
        "cache_position",
        "layer_idx",
        "use_cache",  # packed_forward passes False
        "output_attentions",  # weights are never given, and nobody here reads them
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
    }
)
"""Keywords of attention layers that do not change what attention gives."""

_SINK_WIDTH = 8  # columns that a sink adds to queries, keys and values: kernels like multiples of 8


def document_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    document_lengths: Sequence[int] | None = None,
    longest_document: int = 0,
    sequence: Shard = WHOLE,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: "torch.Tensor | None" = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention inside each document, for transformers' attention interface.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, head_dim].
        key: [1, key-value heads, tokens, head_dim].
        value: like ``key``.
        attention_mask: must be None.
        dropout: probability, in training.
        scaling: of the scores; 1 / sqrt(head_dim) if None.
        is_causal: whether the layer looks back only; the layer's own attribute if None.
        document_lengths: tokens of each document, in order, summing to ``tokens``.
        longest_document: tokens of the longest document there will be in any call, if longer.
        sequence: this rank's part where several share the row; ``tokens`` are then this rank's, and
            ``document_lengths`` sum to those of all.
        sliding_window: tokens that a query sees, itself included; refused where that is shorter
            than a document, unless there are sinks: nothing else computes these.
        softcap: refused.
        s_aux: [heads], a learned score of every head that takes its share of each softmax and gives
            nothing (attention sinks).
        others: what else the layer passes; refused unless it is None, False or :data:`_HARMLESS`.

    Returns:
        ([1, tokens, heads, head_dim], None).

    Raises:
        PackingError: if documents could see each other, or the layer asks for what is not here.
    """
    name = type(module).__name__
    if document_lengths is None or attention_mask is not None:
        raise PackingError(
            f"attention {DOCUMENTS!r} needs document_lengths and no attention mask: "
            "call the model through packed_forward"
        )
    lengths = list(document_lengths)
    if query.shape[0] != 1 or sum(lengths) != query.shape[2] * sequence.degree:
        raise PackingError(
            f"document lengths sum to {sum(lengths)}, the row has "
            f"{query.shape[2] * sequence.degree} tokens (batch {query.shape[0]}, 1 expected)"
        )
    longest = max(*lengths, longest_document)
    if softcap is not None:
        raise PackingError(f"{name} uses a soft cap: set model.attention to eager")
    if sliding_window is not None and sliding_window < longest and s_aux is None:
        raise PackingError(
            f"{name} uses a sliding window of {sliding_window} tokens, shorter "
            f"than a document of {longest}: set model.attention to sdpa or eager"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal:
        raise PackingError(f"{name} looks ahead (is_causal is false): set model.attention to eager")
    _refuse_unknown(name, others)
    if s_aux is not None:
        s_aux = _own_sinks(name, s_aux, query.shape[1], sequence)
    if sequence.degree > 1:
        query, key, value = (to_heads(states, sequence) for states in (query, key, value))
    layer = _Layer(dropout, scaling, s_aux, None if s_aux is None else sliding_window)
    output = _causal_documents(query, key, value, lengths, layer)
    if sequence.degree > 1:
        output = to_tokens(output.transpose(1, 2), sequence).transpose(1, 2)
    return output, None


def _refuse_unknown(name: str, others: dict[str, Any]) -> None:
    """Refuse keywords whose meaning is not known here, unless they ask for nothing."""
    asked = [
        key
        for key, value in others.items()
        if key not in _HARMLESS and value is not None and value is not False
    ]
    if asked:
        raise PackingError(
            f"{name} passes {', '.join(asked)} to its attention, which {DOCUMENTS!r} does not "
            "know: set model.attention to sdpa or eager"
        )


def _own_sinks(name: str, sinks: "torch.Tensor", heads: int, sequence: Shard) -> "torch.Tensor":
    """[heads / degree], the sinks of the heads that this rank computes."""
    if sinks.numel() != heads:
        raise PackingError(
            f"{name} passes s_aux of shape {tuple(sinks.shape)} for {heads} heads: set "
            "model.attention to eager"
        )
    return sinks.reshape(-1).chunk(sequence.degree)[sequence.position]


@dataclass(frozen=True)
class _Layer:
    """What a layer asks for beside causal attention."""

    dropout: float
    scaling: float | None
    sinks: "torch.Tensor | None"
    window: int | None


def _causal_documents(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    lengths: list[int],
    layer: _Layer,
) -> "torch.Tensor":
    """[1, tokens, heads, head_dim]: each document by itself, or all at once by a flash kernel."""
    import torch

    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and layer.sinks is None and flash():
        return _flash_documents(query, key, value, lengths, layer.dropout, layer.scaling)
    outputs = [
        _causal(q, k, v, layer).transpose(1, 2)
        # split, not slices: the backward pass of a slice fills a whole row of zeros
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]
    return torch.cat(outputs, dim=1)


def _causal(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", layer: _Layer
) -> "torch.Tensor":
    """[1, heads, tokens, head_dim] of one document."""
    from torch.nn.functional import scaled_dot_product_attention

    width, scaling, mask = value.shape[-1], layer.scaling, None
    if layer.sinks is not None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = _with_sinks(query, key, value, scaling, layer.sinks)
        if layer.window is not None and layer.window < query.shape[2] - 1:
            mask = _band(query, layer.window)
    found = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=layer.dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found if layer.sinks is None else found[:, :, 1:, :width]


def _with_sinks(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    scaling: float,
    sinks: "torch.Tensor",
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The same with one more position in front, to which every query gives its head's sink score.

    softmax over [s_1 ... s_n, b], without the last: with one more column, q' = [q, b / scaling] and
    k' = [k, 0], a key [0 ... 0, 1] in front scores scaling * (b / scaling) = b, and its value is 0.
    A query in front, whose output is dropped, keeps the causal mask square: the query of position i
    then sees the key in front and the keys of 0 ... i.
    """
    from torch.nn.functional import pad

    column = (sinks.to(query.dtype) / scaling)[None, :, None, None]
    column = column.expand(1, -1, query.shape[2], 1)
    longer = query.new_zeros(*query.shape[:3], _SINK_WIDTH - 1)
    query = pad(_joined(query, column, longer), (0, 0, 1, 0))
    width = key.shape[-1]
    key = pad(key, (0, _SINK_WIDTH, 1, 0))
    key[:, :, 0, width] = 1.0
    return query, key, pad(value, (0, _SINK_WIDTH, 1, 0))


def _band(query: "torch.Tensor", window: int) -> "torch.Tensor":
    """bool[tokens, tokens]: a query sees the key in front, and ``window`` keys up to its own."""
    import torch

    places = torch.arange(query.shape[2], device=query.device)
    back = places[:, None] - places[None]
    return (back >= 0) & ((back < window) | (places == 0))


def _joined(*parts: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat(parts, dim=-1)


def _flash_documents(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    lengths: list[int],
    dropout: float,
    scaling: float | None,
) -> "torch.Tensor":
    """The same by flash attention's kernel for documents of different lengths."""
    kernel = importlib.import_module("flash_attn").flash_attn_varlen_func
    arguments = flash_arguments(query, lengths)
    ends, longest = arguments["cu_seq_lens_q"], arguments["max_length_q"]
    output: torch.Tensor = kernel(
        *(states[0].transpose(0, 1) for states in (query, key, value)),
        ends,
        ends,
        longest,
        longest,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )
    return output[None]


def flash_arguments(like: "torch.Tensor", document_lengths: Sequence[int]) -> dict[str, Any]:
    """Where documents end, as transformers' flash attention takes it."""
    import torch

    ends = torch.tensor([0, *document_lengths], device=like.device).cumsum(0).to(torch.int32)
    longest = max(document_lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def flash() -> list[str]:
    """Names of flash attention that are installed."""
    from transformers.utils.import_utils import is_flash_attn_2_available

    return ["flash_attention_2"] if is_flash_attn_2_available() else []


def register() -> None:
    """Make the attention known to transformers (idempotent).

    Its name stays out of the mask registry, so that transformers builds no mask for it.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(DOCUMENTS, document_attention)
