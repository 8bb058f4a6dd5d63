"""Exact match by greedy decoding, for sources whose answers can be checked.

Checkable are the generated sources, whose whole completion is the answer, and sources in the style
of GSM8K, whose answer is the number behind the last ``####``.
"""

from typing import Any

import numpy as np

from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.sources.source import EncodedRows, Source

MARK = "####"
BATCH = 16  # prompts decoded together
LONGEST_ANSWER = 256  # tokens


def exact_match(learner: CausalLM, split: str, rows: int) -> dict[str, float]:
    """Share of rows answered exactly, for every checkable source.

    Args:
        learner: whose model answers; it is left as it was.
        split: ``select`` or ``test``.
        rows: at most so many per source, the first ones.

    Returns:
        Source name -> share in [0, 1]; sources that cannot be checked are left out.
    """
    model = learner.model
    was_training, attention = model.training, learner.attention
    model.eval()
    model.set_attn_implementation("sdpa")
    try:
        return {
            source.name: _share(learner, source.splits[split], rows)
            for source in learner.sources
            if is_checkable(source, learner.tokenizer, split)
        }
    finally:
        model.set_attn_implementation(attention)
        model.train(was_training)


def is_checkable(source: Source, tokenizer: Any, split: str) -> bool:
    """Whether the answers of a split can be compared as they stand."""
    held_out = source.splits[split]
    if not len(held_out):
        return False
    if source.report.origin.startswith("embedded"):
        return True
    answers = [_reference(held_out, i, tokenizer) for i in range(min(8, len(held_out)))]
    return all(MARK in answer for answer in answers)


def answer_of(text: str) -> str:
    r"""What is compared: the number behind the last mark, or the whole text.

    >>> answer_of("so it is 1,200 in all\n#### 1,200")
    '1200'
    >>> answer_of(" forty two ")
    'forty two'
    """
    if MARK in text:
        return text.rsplit(MARK, 1)[1].strip().replace(",", "").rstrip(".")
    return text.strip()


def _share(learner: CausalLM, held_out: EncodedRows, rows: int) -> float:
    count = min(rows, len(held_out))
    right = 0
    for start in range(0, count, BATCH):
        some = range(start, min(start + BATCH, count))
        wanted = [_reference(held_out, i, learner.tokenizer) for i in some]
        prompts = [_prompt(held_out, i) for i in some]
        length = max(int(held_out.supervised[i]) for i in some) + 8
        given = _decode(learner, prompts, min(length, LONGEST_ANSWER))
        right += sum(answer_of(a) == answer_of(b) for a, b in zip(given, wanted, strict=True))
    return right / count


def _prompt(held_out: EncodedRows, row: int) -> "np.ndarray[Any, np.dtype[np.int32]]":
    """The tokens before the first supervised one."""
    tokens, labels = held_out.row(row)
    return tokens[: int(np.argmax(labels))]


def _reference(held_out: EncodedRows, row: int, tokenizer: Any) -> str:
    tokens, labels = held_out.row(row)
    first = int(np.argmax(labels))
    after = np.flatnonzero(~labels[first:])  # a later turn: only the first answer counts
    end = first + int(after[0]) if after.size else len(tokens)
    text: str = tokenizer.decode(tokens[first:end].tolist(), skip_special_tokens=True)
    return text


def _decode(learner: CausalLM, prompts: list[Any], new_tokens: int) -> list[str]:
    """Greedy continuations; prompts are padded on the left, under a mask."""
    import torch

    tokenizer = learner.tokenizer
    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(prompts), longest), int(pad), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[i, longest - len(prompt) :] = 1
    with torch.no_grad():
        output = learner.model.generate(
            input_ids=ids.to(learner.device),
            attention_mask=mask.to(learner.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=int(pad),
            eos_token_id=tokenizer.eos_token_id,
        )
    texts: list[str] = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return texts
