"""The chat template that a tokenizer brings along, and where completions are in what it writes.

The completion of an assistant turn is all that the model would write: what stands between the
prompt for the assistant and the end of the turn, its end token (``<|im_end|>``, ...) included and
white space behind that left out. Places come from rendering, never from looking for the content:

- the conversation up to a turn, with the prompt for the assistant, ends where the completion
  begins, and the conversation up to and with the turn ends where it does, if the template leaves
  earlier turns as they were when later ones come;
- a template without such a prompt is given a word of ours for the turn's content: what stands
  before that word is the turn's header, which is not learnt;
- where a template rewrites earlier turns (some cut the reasoning out of them), the whole
  conversation is rendered with such words in the place of contents.

A template that marks what the assistant says itself, with ``{% generation %}``, is taken at its
word, and none of this is done.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mixgym.envs.sources.rendering.conversation import ConversationText
from mixgym.envs.sources.rendering.rendered import (
    RefusedRowError,
    Rendered,
    Span,
    by_learning,
    plain_text,
)
from mixgym.envs.sources.rendering.shown import Shown
from mixgym.envs.sources.rendering.special_tokens import eos_of
from mixgym.envs.sources.rows.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ADVICE = "set data.template to plain, or give the tokenizer another chat template"

_NO_END = "an end of assistant turns, so that answers would not end"


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: that has one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        self._prompts: dict[str, bool] = {}  # role -> whether the assistant is prompted behind it

    def render(self, row: Row) -> Rendered:
        """The text of a row and the spans of its completions.

        Raises:
            RefusedRowError: the template refuses the row, or leaves out what it cannot do without.
        """
        if row.text is not None:
            return plain_text(row.text, eos_of(self._tokenizer))
        if _TAG.search(self._source(row)):
            return self._tagged(row)
        talk = ConversationText(self, row)
        spans = {
            index: talk.span(index)
            for index, (role, _) in enumerate(row.messages)
            if role == "assistant"
        }
        shown = Shown(self, row, talk.text)
        shown.check_turns(spans)
        if row.extras:
            shown.check_extras()
        if talk.unended:
            shown.left_out[_NO_END] += talk.unended
        return Rendered(talk.text, *by_learning(row, spans), left_out=shown.left_out)

    def write(
        self, row: Row, turns: Sequence[Any], *, tools: bool = True, prompt: bool = False
    ) -> str:
        """The text of some turns.

        Args:
            row: whose turns they are, for its tools and for errors.
            turns: as a chat template takes them.
            tools: whether it is given the row's tools.
            prompt: whether the assistant is prompted behind them.

        Raises:
            RefusedRowError: the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns),
                    tools=row.tools() if tools else None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            self.refuse(row, f"refuses the row ({error})", error)

    def _source(self, row: Row) -> str:
        """The template that is used for a row: some tokenizers have one of their own for tools."""
        return str(self._tokenizer.get_chat_template(tools=row.tools()))

    def _tagged(self, row: Row) -> Rendered:
        """The text of a row, and what its template marks as said by the assistant."""
        text, spans = self._marked(row)
        speakers = [i for i, (role, _) in enumerate(row.messages) if role == "assistant"]
        by_turn = dict(zip(speakers, spans, strict=False))
        is_clear = len(spans) == len(speakers)
        if not is_clear and row.muted:
            self.refuse(
                row,
                f"marks {len(spans)} parts of {len(speakers)} assistant turns, so that the turns "
                "that are not learnt cannot be told apart",
            )
        shown = Shown(self, row, text)
        shown.check_turns(by_turn if is_clear else dict.fromkeys(speakers, (0, len(text))))
        if row.extras:
            shown.check_extras()
        answers = {row.messages[index][1].strip() for index in speakers}
        unended = sum(text[begin:end].strip() in answers for begin, end in spans)
        if unended:
            shown.left_out[_NO_END] += unended
        if not is_clear:
            return Rendered(text, tuple(spans), left_out=shown.left_out)
        return Rendered(text, *by_learning(row, by_turn), left_out=shown.left_out)

    def _marked(self, row: Row) -> tuple[str, list[Span]]:
        """The text of a row, and the parts inside ``{% generation %}``, in order and apart."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        words: dict[str, Any] = dict(self._tokenizer.special_tokens_map)
        try:
            found: Any = render_jinja_template(
                [row.turns()],
                tools=row.tools(),
                chat_template=self._source(row),
                return_assistant_tokens_mask=True,
                **words,
            )
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            self.refuse(row, f"refuses the row ({error})", error)
        (text,), (places,) = found
        return str(text), [(int(begin), int(end)) for begin, end in places if begin < end]

    def prompts_after(self, role: str, ask: Callable[[], bool]) -> bool:
        """Whether the template prompts the assistant behind a turn of ``role``; asked once."""
        if role not in self._prompts:
            self._prompts[role] = ask()
        return self._prompts[role]

    def refuse(
        self, row: Row, problem: str, cause: Exception | None = None, advice: str = _ADVICE
    ) -> NoReturn:
        """Raise the error that a row calls for."""
        raise RefusedRowError(f"{row.where}: the chat template {problem}; {advice}") from cause
