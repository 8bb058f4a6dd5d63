"""Packed documents that cannot see each other, in any causal LM of transformers.

Documents lie end to end in one row. On CPU, attention runs one document at a time (a dense
block-diagonal mask costs several times as much); elsewhere transformers' own block-diagonal mask
or the variable-length flash kernels do it. Transformers isolates packed documents only if position
ids restart, no cache is made and no 2-D mask is given, and leaks silently otherwise:
:func:`packed_forward` is the one way through which this project calls a model on packed rows, and
it refuses the three.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import PackingError
from mixgym.envs.learners.models.precision import evaluation_mode
from mixgym.envs.learners.parallel.sequence_parallel import WHOLE, Shard, to_heads, to_tokens

if TYPE_CHECKING:
    import torch

DOCUMENTS = "mixgym_documents"


def document_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_lengths: Sequence[int] | None = None,
    longest_document: int = 0,
    sequence: Shard = WHOLE,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention inside each document, for transformers' attention interface.

    Args:
        module: the attention layer (its ``num_key_value_groups`` is read).
        query: [1, heads, tokens, head_dim].
        key: [1, key-value heads, tokens, head_dim].
        value: like ``key``.
        attention_mask: must be None.
        dropout: probability, in training.
        scaling: of the scores; 1 / sqrt(head_dim) if None.
        document_lengths: tokens of each document, in order, summing to ``tokens``.
        longest_document: tokens of the longest document there will be in any call, if longer.
        sequence: this rank's part where several share the row; ``tokens`` are then this rank's, and
            ``document_lengths`` sum to those of all.
        sliding_window: refused where it is shorter than a document.
        softcap: refused.

    Returns:
        ([1, tokens, heads, head_dim], None).

    Raises:
        PackingError: if documents could see each other, or the layer asks for what is not here.
    """
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
        raise PackingError(f"{type(module).__name__} uses a soft cap: set model.attention to eager")
    if sliding_window is not None and sliding_window < longest:
        raise PackingError(
            f"{type(module).__name__} uses a sliding window of {sliding_window} tokens, shorter "
            f"than a document of {longest}: set model.attention to sdpa or eager"
        )
    if sequence.degree > 1:
        query, key, value = (to_heads(states, sequence) for states in (query, key, value))
    output = _causal_documents(query, key, value, lengths, dropout, scaling)
    if sequence.degree > 1:
        output = to_tokens(output.transpose(1, 2), sequence).transpose(1, 2)
    return output, None


def _causal_documents(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    lengths: list[int],
    dropout: float,
    scaling: float | None,
) -> "torch.Tensor":
    """[1, tokens, heads, head_dim]: each document by itself, or all at once by a flash kernel."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and _flash():
        return _flash_documents(query, key, value, lengths, dropout, scaling)
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
        # split, not slices: the backward pass of a slice fills a whole row of zeros
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]
    return torch.cat(outputs, dim=1)


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
    arguments = _flash_arguments(query, lengths)
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


def register() -> None:
    """Make the attention known to transformers (idempotent).

    Its name stays out of the mask registry, so that transformers builds no mask for it.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(DOCUMENTS, document_attention)


def packed_forward(
    model: Any,
    input_ids: "torch.Tensor",
    position_ids: "torch.Tensor | None",
    document_lengths: Sequence[int],
    *,
    logits_to_keep: "torch.Tensor | int" = 0,
    longest_document: int = 0,
    sequence: Shard = WHOLE,
    attention_mask: "torch.Tensor | None" = None,
    use_cache: bool = False,
) -> "torch.Tensor":
    """Logits of packed documents.

    Args:
        model: a causal LM of transformers.
        input_ids: int64[1, tokens].
        position_ids: int64[1, tokens], restarting at 0 with every document.
        document_lengths: tokens of each document.
        logits_to_keep: positions whose logits are wanted (int64[n]), or 0 for all.
        longest_document: tokens of the longest document of later calls, so that our attention can
            refuse a sliding window ahead of them.
        sequence: this rank's part, where several ranks share the row: ids and positions are then
            this rank's, document lengths those of the whole row.
        attention_mask: refused; it exists so that the refusal can say why.
        use_cache: refused when true, for the same reason.

    Returns:
        float[1, n, vocabulary].

    Raises:
        PackingError: for a mask, a cache, or position ids that do not restart with the documents.
    """
    if attention_mask is not None:
        raise PackingError(
            "a mask over packed documents makes transformers treat them as one: pass none"
        )
    if use_cache:
        raise PackingError("a cache makes transformers treat packed documents as one: no use_cache")
    _check_positions(position_ids, document_lengths, sequence)
    extra: dict[str, Any] = {}
    implementation = model.config._attn_implementation
    if implementation == DOCUMENTS:
        extra["document_lengths"] = tuple(document_lengths)
        extra["longest_document"] = longest_document
        extra["sequence"] = sequence
    elif sequence.degree > 1:
        raise PackingError(
            f"attention {implementation!r} cannot share a pack between ranks: set model.attention "
            "to documents"
        )
    elif "flash" in implementation:
        extra |= _flash_arguments(input_ids, document_lengths)
    output = model(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=logits_to_keep,
        **extra,
    )
    logits: torch.Tensor = output.logits
    return logits


def _check_positions(
    position_ids: "torch.Tensor | None", document_lengths: Sequence[int], sequence: Shard
) -> None:
    import torch

    if position_ids is None:
        raise PackingError("packed documents need position_ids that restart with each of them")
    wanted = torch.cat([torch.arange(n, device=position_ids.device) for n in document_lengths])
    wanted = wanted.chunk(sequence.degree)[sequence.position]
    if position_ids.shape != (1, len(wanted)) or not torch.equal(position_ids[0], wanted):
        raise PackingError(
            "position_ids do not restart at 0 with every document: "
            "documents would be told apart wrongly"
        )


def _flash_arguments(like: "torch.Tensor", document_lengths: Sequence[int]) -> dict[str, Any]:
    import torch

    ends = torch.tensor([0, *document_lengths], device=like.device).cumsum(0).to(torch.int32)
    longest = max(document_lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def choose_attention(model: Any, wanted: str, device: str, longest: int) -> str:
    """Set and return the attention implementation.

    Args:
        model: a causal LM; its attention is changed.
        wanted: ``auto``, ``documents`` or a name that transformers knows. ``auto`` is per-document
            attention on CPU, flash attention on CUDA where it is installed, SDPA otherwise; each
            only if it isolates documents in this very model (see :func:`leak`).
        device: ``cpu``, ``cuda``, ...
        longest: tokens of the longest document there will be.

    Raises:
        PackingError: if documents see each other with the implementation that was asked for.
    """
    register()
    names = [DOCUMENTS if wanted == "documents" else wanted]
    if wanted == "auto":
        names = [DOCUMENTS, "sdpa", "eager"] if device == "cpu" else [*_flash(), "sdpa", "eager"]
    problems = []
    for name in names:
        try:
            model.set_attn_implementation(name)
            found = leak(model, longest)
        except (PackingError, ValueError, ImportError, NotImplementedError, TypeError) as error:
            problems.append(f"{name}: {error}")
            continue
        if found <= 1e-3:
            return name
        problems.append(f"{name}: packed logits differ from unpacked ones by {found:.1e}")
    raise PackingError(
        f"{type(model).__name__} does not keep packed documents apart ({'; '.join(problems)}): "
        "choose another model.attention"
    )


def _flash() -> list[str]:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return ["flash_attention_2"] if is_flash_attn_2_available() else []


def leak(model: Any, longest: int = 0) -> float:
    """How far packing two documents moves the second one's logits, whatever the first one is.

    Args:
        model: a causal LM, as it is set up.
        longest: tokens of the longest document there will be.

    Returns:
        The largest difference of logits, relative to their largest magnitude.
    """
    import torch

    lengths = (7, 5)
    device = next(model.parameters()).device
    vocabulary = int(model.config.get_text_config().vocab_size)
    rows = torch.arange(24, device=device).view(2, 12) * 7 % vocabulary
    rows[1, 7:] = rows[0, 7:]
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    second = torch.arange(7, 12, device=device)

    def logits(row: torch.Tensor) -> torch.Tensor:
        return packed_forward(
            model, row[None], positions, lengths, logits_to_keep=second, longest_document=longest
        )

    with evaluation_mode(model), torch.no_grad():
        one, other = (logits(row) for row in rows)
        alone = packed_forward(model, rows[:1, 7:], positions[:, 7:], lengths[1:])
    if one.shape != alone.shape:
        raise PackingError(f"{type(model).__name__} does not take logits_to_keep")
    apart = torch.maximum((one - other).abs().max(), (one - alone).abs().max())
    return float(apart / alone.abs().max().clamp_min(1e-6))
