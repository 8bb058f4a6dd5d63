"""The tokens that a tokenizer puts around a text of its own accord."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixgym.envs.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROBES = ("a", "0", "the")


@dataclass(frozen=True)
class Beginning:
    """How a tokenizer begins a text.

    Attributes:
        ids: the tokens in front (BOS, as a rule), or none.
        text: what is read as just these tokens; empty if there is none.
        bos: the id of its BOS token, which a chat template may write, or None.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    bos: int | None = None

    def size(self, tokens: list[int]) -> int:
        """How many of a row's first tokens are its beginning, which truncation keeps."""
        if self.ids and tuple(tokens[: len(self.ids)]) == self.ids:
            return len(self.ids)
        return int(bool(tokens) and self.bos is not None and tokens[0] == self.bos)


def beginning_of(tokenizer: "PreTrainedTokenizerFast") -> Beginning:
    """What ``tokenizer`` puts before a text, found by asking it.

    A token that it puts behind a text is not looked for: rows end with the end token anyway.
    """
    ids = _prefix(tokenizer)
    text = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    if _ids(tokenizer, text, special=False) != list(ids):
        text = ""
    return Beginning(ids, text, tokenizer.bos_token_id)


def _prefix(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    for probe in PROBES:
        bare = _ids(tokenizer, probe, special=False)
        whole = _ids(tokenizer, probe, special=True)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return tuple(whole[:start])
    return ()


def _ids(tokenizer: "PreTrainedTokenizerFast", text: str, *, special: bool) -> list[int]:
    if not text:
        return []
    found = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return [int(token) for token in found]


def eos_of(tokenizer: "PreTrainedTokenizerFast") -> str:
    """The text of the end-of-sequence token.

    Raises:
        SourceError: the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise SourceError(
            "the tokenizer has no eos token, so completions would never end; "
            "set tokenizer.eos_token before encoding"
        )
    return str(tokenizer.eos_token)
