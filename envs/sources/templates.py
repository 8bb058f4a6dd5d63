"""Which template a tokenizer's rows are rendered with, and which one is saved with the model.

A row of plain text is the text and the end token, all of it a completion, whatever the template.
"""

from typing import TYPE_CHECKING, Any, Literal

from mixgym.envs.sources.rendering.chat import ChatTemplate as ChatTemplate
from mixgym.envs.sources.rendering.plain import PlainTemplate as PlainTemplate
from mixgym.envs.sources.rendering.plain import as_jinja
from mixgym.envs.sources.rendering.rendered import Rendered as Rendered
from mixgym.envs.sources.rendering.rendered import Template as Template
from mixgym.envs.sources.rendering.special_tokens import beginning_of, eos_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Choice = Literal["auto", "plain"]


def choose_template(tokenizer: "PreTrainedTokenizerFast", template: Choice) -> Template:
    """The tokenizer's chat template if it has one and it is wanted, else the plain one."""
    own = tokenizer.chat_template
    if template == "auto" and own is not None and own != _plain(tokenizer):
        return ChatTemplate(tokenizer)
    return PlainTemplate(eos_of(tokenizer), beginning_of(tokenizer).text)


def prompting_as_trained(tokenizer: Any, template: Choice) -> Any:
    """The tokenizer, with the chat template that its rows are rendered with.

    One that has a chat template of its own is left as it is, unless rows are rendered plainly.
    """
    if template == "plain" or tokenizer.chat_template is None:
        eos_of(tokenizer)
        tokenizer.chat_template = _plain(tokenizer)
    return tokenizer


def _plain(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    if tokenizer.eos_token is None:
        return None
    return as_jinja(tokenizer, beginning_of(tokenizer).text)
