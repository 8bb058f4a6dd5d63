"""Packed documents that cannot see each other, in any causal LM of transformers.

Documents lie end to end in one row. On CPU our attention takes one at a time
(:mod:`mixgym.envs.learners.models.document_attention`); elsewhere transformers' own block-diagonal
mask or the variable-length flash kernels do it. Transformers isolates packed documents only if
position ids restart, no cache is made and no 2-D mask is given, and leaks silently otherwise:
:func:`packed_forward` is the one way through which this project calls a model on packed rows, and
it refuses the three. No implementation is believed: :func:`choose_attention` tries it on the model.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import PackingError
from mixgym.envs.learners.models.document_attention import (
    DOCUMENTS,
    document_attention,
    flash,
    flash_arguments,
    register,
)
from mixgym.envs.learners.models.precision import evaluation_mode
from mixgym.envs.learners.models.rotary import check_scale
from mixgym.envs.learners.parallel.sequence_parallel import WHOLE, Shard

if TYPE_CHECKING:
    import torch


__all__ = [
    "DOCUMENTS", "choose_attention", "document_attention", "leak", "own_attention",
    "packed_forward", "register",
]  # fmt: skip

_LEAK = 1e-5
"""Relative difference of float32 logits that packing may make; clean models stay below 1e-6."""
_ROUNDING = 1e-4
"""The same between two implementations of attention, over a document of full length."""
_HALF_ROUNDING = 0.06
"""Both under automatic mixed precision: bfloat16 rounds by 4e-3, at every layer."""
_TRIED = 64  # positions of a long document whose logits are compared
_PLAIN_TOKENS = 1000  # token ids below: placeholders of images and the like stand behind
EAGER_SCORES = 2**29  # of a layer, at most; behind stands SDPA for eager, which holds none of them
_FAILURES = (
    RuntimeError, ValueError, TypeError, ImportError, NotImplementedError, AttributeError,
    LookupError, AssertionError,
)  # fmt: skip
"""What models and kernels raise that do not take what they are given."""


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
        extra |= flash_arguments(input_ids, document_lengths)
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


def choose_attention(
    model: Any, wanted: str, device: str, longest: int, *, bf16: bool = False
) -> str:
    """Set and return the attention implementation.

    An implementation is taken if it keeps packed documents of this very model apart (:func:`leak`)
    and gives what the model's own gives for documents of full length. An implementation that fails
    is passed over with a warning.

    Args:
        model: a causal LM; its attention is changed.
        wanted: ``auto``, ``documents`` or a name that transformers knows. ``auto`` is per-document
            attention on CPU, flash attention on CUDA where it is installed, then SDPA, then eager.
        device: ``cpu``, ``cuda``, ...
        longest: tokens of the longest document there will be.
        bf16: whether the model will compute under automatic mixed precision.

    Raises:
        PackingError: if none will do, saying why.
    """
    register()
    check_scale(model, longest)
    names = [DOCUMENTS if wanted == "documents" else wanted]
    if wanted == "auto":
        names = [DOCUMENTS, "sdpa", "eager"] if device == "cpu" else [*flash(), "sdpa", "eager"]
    problems: list[_Problem] = []
    for name in names:
        problem = _problem(model, name, longest, bf16=bf16)
        if problem is None:
            _warn(model, name, problems)
            return name
        problems.append(problem)
    advice = "choose another model.attention"
    if wanted == "auto" and all(problem.leaks for problem in problems):
        advice = (
            "something beside attention goes from one to the next (a recurrent state, a "
            "convolution, positions of its own): choose another model"
        )
    said = "; ".join(f"{problem.name}: {problem.why}" for problem in problems)
    raise PackingError(
        f"{type(model).__name__} does not keep packed documents apart ({said}): {advice}"
    )


def own_attention(model: Any, longest: int) -> str:
    """The fastest implementation of transformers that gives what eager gives, to decode with."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("sdpa")
        return "sdpa" if max(_beside(model, "sdpa", "eager", longest, 0)) <= _ROUNDING else "eager"
    except Exception:
        return "eager"
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class _Problem:
    """Why an implementation of attention will not do.

    Attributes:
        name: of the implementation.
        why: in words.
        ordinary: whether it said so itself, so that the next one is taken without a warning.
        leaks: whether documents saw each other.
    """

    name: str
    why: str
    ordinary: bool = False
    leaks: bool = False


def _warn(model: Any, taken: str, problems: list[_Problem]) -> None:
    for problem in problems:
        if not problem.ordinary:
            warnings.warn(
                f"{type(model).__name__}: attention {taken} is used and not {problem.name}: "
                f"{problem.why}",
                stacklevel=3,
            )


def _problem(model: Any, name: str, longest: int, *, bf16: bool) -> _Problem | None:
    """What speaks against an implementation; None: nothing."""
    try:
        model.set_attn_implementation(name)
    except _FAILURES as error:
        return _Problem(name, _first_line(error), isinstance(error, ValueError | ImportError))
    exact = True
    for half in (False, True) if bf16 else (False,):
        try:
            with _autocast(model, half=half):
                problem = _measured(model, name, longest, half=half, exact=exact and half)
        except PackingError as error:
            return _Problem(name, str(error), ordinary=True)
        except _FAILURES as error:
            if not bf16 or half:
                return _Problem(name, _first_line(error), isinstance(error, ValueError))
            exact = False  # a kernel for half precision alone
            continue
        if problem is not None:
            return problem
    return None


def _measured(model: Any, name: str, longest: int, *, half: bool, exact: bool) -> _Problem | None:
    """Compare logits; in half precision too, the typical ones, if the exact ones agreed before.

    The largest difference says too much there: a router of experts near a tie takes another one.
    """
    pick = _middle if exact else max
    leaks, off = pick(_leaks(model, longest)), pick([0.0, *_distances(model, name, longest)])
    if not (math.isfinite(leaks) and math.isfinite(off)):
        return _Problem(name, "logits are not finite: are the model's weights sound?")
    if leaks > (_HALF_ROUNDING if half else _LEAK):
        return _Problem(name, f"packed logits differ from unpacked ones by {leaks:.1e}", leaks=True)
    if off > (_HALF_ROUNDING if half else _ROUNDING):
        why = f"logits differ from those of the model's own attention by {off:.1e}"
        return _Problem(name, why)
    return None


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


@contextmanager
def _autocast(model: Any, *, half: bool) -> Iterator[None]:
    import torch

    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=half):
        yield


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def leak(model: Any, longest: int = 0) -> float:
    """How far packing two documents moves the second one's logits, whatever the first one is.

    Args:
        model: a causal LM, as it is set up.
        longest: tokens of the longest document there will be.

    Returns:
        The largest difference of logits, relative to their largest magnitude.
    """
    return max(_leaks(model, longest))


def _leaks(model: Any, longest: int) -> list[float]:
    """The same for every position of the second document."""
    import torch

    lengths = (7, 5)
    device = next(model.parameters()).device
    rows = torch.arange(24, device=device).view(2, 12) * 7 % _vocabulary(model)
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
    return [max(pair) for pair in zip(_apart(one, other), _apart(one, alone), strict=True)]


def _distances(model: Any, name: str, longest: int) -> list[float]:
    """How far logits under an implementation are from those of the model's own attention.

    Documents of full length show what short ones do not: windows, chunks, whatever is dropped.
    Eager attention holds all scores, so it goes as far as memory allows, and SDPA beyond.

    Args:
        model: a causal LM; its attention is ``name`` afterwards.
        name: the implementation.
        longest: tokens of the longest document there will be.

    Returns:
        Differences of logits at some positions, relative to the largest magnitude, of one document
        of full length alone, and of one and a short one that share a row.
    """
    heads = int(getattr(model.config.get_text_config(), "num_attention_heads", None) or 1)
    held = longest if name == "eager" else min(longest, math.isqrt(EAGER_SCORES // heads))
    found = _both(model, name, "eager", held)
    if held < longest and name != "sdpa" and _has_sdpa(model, name):
        found += _both(model, name, "sdpa", longest)
    return found


def _has_sdpa(model: Any, name: str) -> bool:
    """Whether the model runs with SDPA; its attention is ``name`` afterwards."""
    import torch

    ids = torch.zeros(1, 2, dtype=torch.int64, device=next(model.parameters()).device)
    try:
        model.set_attn_implementation("sdpa")
        with evaluation_mode(model), torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except _FAILURES:
        return False
    finally:
        model.set_attn_implementation(name)
    return True


def _both(model: Any, name: str, reference: str, longest: int) -> list[float]:
    alone = [] if name == reference or longest < 1 else _beside(model, name, reference, longest, 0)
    return alone + (_beside(model, name, reference, longest - 7, 7) if longest > 7 else [])


def _beside(model: Any, name: str, reference: str, tokens: int, before: int) -> list[float]:
    """Of a document of so many tokens, and of ``before`` tokens in front of it if there are any."""
    import torch

    device = next(model.parameters()).device
    lengths = (before, tokens) if before else (tokens,)
    ids = torch.arange(before + tokens, device=device)[None] * 7 % _vocabulary(model)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    kept = torch.linspace(0, tokens - 1, min(tokens, _TRIED), device=device).long()
    parts = [(ids[:, before:], kept)]
    if before:
        parts.insert(0, (ids[:, :before], torch.arange(before, device=device)))
    places = torch.cat([part[1] + i * before for i, part in enumerate(parts)])
    with evaluation_mode(model), torch.no_grad():
        found = packed_forward(model, ids, positions, lengths, logits_to_keep=places)
        model.set_attn_implementation(reference)
        try:
            alone = [model(input_ids=i, use_cache=False, logits_to_keep=k).logits for i, k in parts]
        finally:
            model.set_attn_implementation(name)
    return _apart(found, torch.cat(alone, dim=1))


def _apart(one: "torch.Tensor", other: "torch.Tensor") -> list[float]:
    """Of every position the largest difference, relative to the largest magnitude of all."""
    scale = other.abs().max().clamp_min(1e-6)
    apart: list[float] = ((one.double() - other.double()).abs().amax(-1) / scale).flatten().tolist()
    return apart


def _vocabulary(model: Any) -> int:
    """How many token ids to try: the first ones, which are those of plain text."""
    return min(int(model.config.get_text_config().vocab_size), _PLAIN_TOKENS)
