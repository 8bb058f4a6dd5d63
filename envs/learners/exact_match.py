"""Exact match by greedy decoding, for sources whose answers can be checked.

Checkable are the generated sources, whose whole completion is the answer, and sources in the style
of GSM8K, whose answer is the number behind the last ``####``.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.models.attention import own_attention
from mixgym.envs.learners.models.precision import evaluation_mode
from mixgym.envs.sources.source import EncodedRows, Source

_MARK = "####"
BATCH = 16  # prompts decoded together
_LONGEST_ANSWER = 256  # tokens
_TRIED_TOKENS = 64  # of the document on which an attention to decode with is tried


def exact_match(learner: CausalLM, split: str, rows: int) -> dict[str, float]:
    """Share of rows answered exactly, for every checkable source.

    Args:
        learner: whose model answers; it is left as it was.
        split: ``select`` or ``test``.
        rows: at most so many per source, the first ones.

    Returns:
        Source name -> share in [0, 1]; sources that cannot be checked are left out.
    """
    with _decoding(learner):
        return {
            source.name: _share(learner, source.splits[split], rows)
            for source in learner.sources
            if is_checkable(source, learner.tokenizer, split)
        }


@contextmanager
def _decoding(learner: CausalLM) -> Iterator[None]:
    """Evaluation mode, an attention that takes padding, and no settings but those of this module.

    A checkpoint brings settings of its own for generation (a repetition penalty, say), which
    ``generate`` fills in wherever it is not told otherwise.
    """
    model = learner.model
    settings = getattr(model, "generation_config", None)
    attention = own_attention(model, _TRIED_TOKENS)
    with evaluation_mode(model):
        try:
            model.generation_config = _greedy(learner)
            model.set_attn_implementation(attention)
            yield
        finally:
            model.generation_config = settings
            model.set_attn_implementation(learner.attention)


def _greedy(
    learner: CausalLM, new_tokens: int = _LONGEST_ANSWER, learnt: Collection[int] = ()
) -> Any:
    """Settings of ``generate``: the likeliest token, until an end token.

    Those are the tokenizer's, the model's, and ``learnt`` ones.
    """
    from transformers import GenerationConfig

    tokenizer, model = learner.tokenizer, learner.model
    given = getattr(model, "generation_config", None)
    ends = set(learnt)
    for end in (tokenizer.eos_token_id, getattr(given, "eos_token_id", None)):
        several = end if isinstance(end, list | tuple) else [end]
        ends |= {int(one) for one in several if one is not None}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        pad_token_id=_pad(tokenizer),
        eos_token_id=sorted(ends) or None,
    )


def _pad(tokenizer: Any) -> int:
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)  # behind a mask any token will do


def is_checkable(source: Source, tokenizer: Any, split: str) -> bool:
    """Whether the answers of a split can be compared as they stand."""
    held_out = source.splits[split]
    if not len(held_out):
        return False
    if source.report.origin.startswith("embedded"):
        return True
    answers = [_reference(held_out, i, tokenizer) for i in range(min(8, len(held_out)))]
    return all(_MARK in answer for answer in answers)


def answer_of(text: str) -> str:
    r"""What is compared: the number behind the last mark, or the whole text.

    >>> answer_of("so it is 1,200 in all\n#### 1,200")
    '1200'
    >>> answer_of(" forty two ")
    'forty two'
    """
    if _MARK in text:
        return text.rsplit(_MARK, 1)[1].strip().replace(",", "").rstrip(".")
    return text.strip()


def _share(learner: CausalLM, held_out: EncodedRows, rows: int) -> float:
    """Every answer may be as long as the longest of the split, whatever is decoded beside it."""
    count = min(rows, len(held_out))
    longest = min(int(held_out.supervised.max()) + 8, _LONGEST_ANSWER)
    prompts = [_prompt(held_out, i) for i in range(count)]
    ends = _ends(held_out, learner.tokenizer)
    given = [""] * count
    for some, new_tokens in _batches([len(prompt) for prompt in prompts], longest, _room(learner)):
        answers = _decode(learner, [prompts[i] for i in some], new_tokens, ends)
        for i, answer in zip(some, answers, strict=True):
            given[i] = answer
    wanted = [_reference(held_out, i, learner.tokenizer) for i in range(count)]
    right = sum(answer_of(a) == answer_of(b) for a, b in zip(given, wanted, strict=True))
    return right / count


def _room(learner: CausalLM) -> int | None:
    """Tokens that the model has positions for; None: any number."""
    config = learner.model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _batches(
    lengths: Sequence[int], longest: int, room: int | None
) -> Iterator[tuple[list[int], int]]:
    """Prompts that are decoded together, and the new tokens that each may have.

    A prompt that leaves less room than ``longest`` tokens is decoded by itself, so that it cuts no
    other's answer.

    >>> list(_batches([5, 96, 7], 8, 100))
    [([0, 2], 8), ([1], 4)]
    """
    fits = [room is None or length + longest <= room for length in lengths]
    together = [i for i, whole in enumerate(fits) if whole]
    for start in range(0, len(together), BATCH):
        yield together[start : start + BATCH], longest
    for i, whole in enumerate(fits):
        if not whole and room is not None and lengths[i] < room:
            yield [i], room - lengths[i]


def _prompt(held_out: EncodedRows, row: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """The tokens before the first supervised one."""
    tokens, labels = held_out.row(row)
    return tokens[: int(np.argmax(labels))]


def _first_answer(held_out: EncodedRows, row: int) -> list[int]:
    """The tokens of the first completion; later turns do not count."""
    tokens, labels = held_out.row(row)
    first = int(np.argmax(labels))
    after = np.flatnonzero(~labels[first:])
    end = first + int(after[0]) if after.size else len(tokens)
    found: list[int] = tokens[first:end].tolist()
    return found


def _reference(held_out: EncodedRows, row: int, tokenizer: Any) -> str:
    text: str = tokenizer.decode(_first_answer(held_out, row), skip_special_tokens=True)
    return text


def _ends(held_out: EncodedRows, tokenizer: Any) -> set[int]:
    """The token that a chat template ends answers with, which may be none of the tokenizer's.

    A token of plain text ends answers by chance, and the rarer ones are of answers that were cut.
    """
    last = Counter(_first_answer(held_out, row)[-1] for row in range(len(held_out)))
    return {token for token, _ in last.most_common(1) if token in tokenizer.added_tokens_decoder}


def _decode(
    learner: CausalLM, prompts: list[Any], new_tokens: int, ends: Collection[int] = ()
) -> list[str]:
    """Greedy continuations; prompts are padded on the left, under a mask."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), _pad(learner.tokenizer), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[i, longest - len(prompt) :] = 1
    with torch.no_grad():
        output = learner.model.generate(
            input_ids=ids.to(learner.device),
            attention_mask=mask.to(learner.device),
            generation_config=_greedy(learner, new_tokens, ends),
        )
    texts: list[str] = learner.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return texts
