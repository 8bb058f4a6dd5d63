"""Completions under chat templates of many kinds: the spans, and what the templates leave out."""

from copy import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import SourceError
from mixgym.envs.options import DataOptions
from mixgym.envs.sources.encoding import encode_rows
from mixgym.envs.sources.reading import read_rows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
# of Qwen3's kind: reasoning stays behind the last question only, where there always is some
STRIPPING = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# of Vicuna's kind: no prompt for the assistant, its name before every answer
NAMED = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}<eos>{% endif %}{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TURNS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


@pytest.fixture
def learnt(bytes_tokenizer, write):
    """The learnt parts of a row under a template, and what was left out."""

    def _learnt(template, messages, **columns):
        tokenizer = copy(bytes_tokenizer)
        tokenizer.chat_template = template
        path = write("a.jsonl", [{"messages": messages, **columns}])
        rows = read_rows({"train": path}, "s").rows["train"]
        encoded = encode_rows(rows, tokenizer, DataOptions(max_length=1 << 16), "s")
        tokens, labels = encoded.rows.row(0)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(int), [0]])))
        runs = [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]
        return runs, dict(encoded.left_out)

    return _learnt


# --- spans ---


@pytest.mark.parametrize(
    "answer", ["A", "ASSISTANT", "ASSISTANT:", ":", "SIS", "ASSISTANT: A", "s>"]
)
def test_an_answer_that_stands_in_the_header_leaves_the_header_out(learnt, answer):
    talk = [user("q"), assistant(answer), user("USER: " + answer), assistant("x" + answer)]
    runs, left_out = learnt(NAMED, talk)
    assert runs == [answer + "<eos>", "x" + answer + "<eos>"]
    assert left_out == {}


def test_a_conversation_that_the_assistant_begins(learnt):
    for template, end in ((NAMED, "<eos>"), (CHATML, "<|im_end|>")):
        runs, _ = learnt(template, [assistant("A"), user("q"), assistant("b")])
        # the first token of a row is never learnt, but this header is not its content
        assert runs == ["A" + end, "b" + end]


def test_reasoning_and_calls_are_learnt_with_the_answer(learnt):
    talk = [user("q"), assistant("4", reasoning_content="2+2"), user("r")]
    talk += [assistant("Look.", tool_calls=[CALL]), {"role": "tool", "content": "cold"}]
    runs, left_out = learnt(CHATML + "", [*talk, assistant("It is cold.")])
    assert runs == [
        "<think>2+2</think>4<|im_end|>",
        'Look.<call>weather {"city": "Oslo"}</call><|im_end|>',
        "It is cold.<|im_end|>",
    ]
    assert left_out == {}


def test_a_call_without_a_content(learnt):
    talk = [user("q"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "cold"}]
    runs, _ = learnt(CHATML, [*talk, assistant("yes")])
    assert runs == ['<call>weather {"city": "Oslo"}</call><|im_end|>', "yes<|im_end|>"]


def test_a_template_without_a_prompt_learns_reasoning_before_the_content(learnt):
    template = NAMED.replace("{{ m.content }}<eos>", "<think>{{ m.reasoning_content }}</think>"
                             "{{ m.content }}<eos>")  # fmt: skip
    runs, _ = learnt(template, [user("q"), assistant("4", reasoning_content="2+2")])
    assert runs == ["2+2</think>4<eos>"]


def test_templates_that_strip_earlier_reasoning_are_served(learnt):
    talk = [user("q"), assistant("a", reasoning_content="R1"), user("r")]
    runs, left_out = learnt(STRIPPING, [*talk, assistant("b", reasoning_content="R2")])
    assert runs == ["a<|im_end|>", "<think>\nR2\n</think>\n\nb<|im_end|>"]
    assert left_out == {"reasoning_content": 1}
    talk = [user("q"), assistant("<think>\nR1\n</think>\n\na"), user("r")]
    runs, left_out = learnt(STRIPPING, [*talk, assistant("<think>R2</think>b")])
    assert runs == ["a<|im_end|>", "<think>\nR2\n</think>\n\nb<|im_end|>"]
    assert left_out == {"reasoning inside the content of earlier turns": 1}
    runs, left_out = learnt(STRIPPING, [user("q"), assistant("a"), user("r"), assistant("b")])
    assert runs == ["a<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]
    assert left_out == {}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TURNS, min_size=2, max_size=8).filter(lambda t: len(t) % 2 == 0))
@pytest.mark.parametrize("template", [STRIPPING, NAMED, CHATML])
def test_any_texts_are_placed_to_the_character(bytes_tokenizer, template, texts):
    from mixgym.envs.sources.rows.row import Row

    tokenizer = copy(bytes_tokenizer)
    tokenizer.chat_template = template
    roles = ("user", "assistant")
    row = Row(tuple((roles[i % 2], t) for i, t in enumerate(texts)), None, {}, "f", 1)
    encoded = encode_rows([row], tokenizer, DataOptions(max_length=1 << 16), "s")
    tokens, labels = encoded.rows.row(0)
    thought = "<think>\n\n</think>\n\n" if template == STRIPPING else ""
    end = "<eos>" if template == NAMED else "<|im_end|>"
    answers = [text + end for text in texts[1::2]]
    answers[-1] = thought + answers[-1]
    assert tokenizer.decode(tokens[labels]) == "".join(answers)


TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def test_generation_tags_say_what_is_learnt(learnt):
    talk = [user("q"), assistant("a"), user("r"), assistant("b")]
    assert learnt(TAGGED, talk) == learnt(CHATML, talk) == (["a<|im_end|>", "b<|im_end|>"], {})
    muted = [user("q"), assistant("a", train=False), user("r"), assistant("b")]
    assert learnt(TAGGED, muted) == (["b<|im_end|>"], {})
    called = [user("q"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "cold"}]
    runs, left_out = learnt(TAGGED, [*called, assistant("It is cold.")])
    assert runs == ['<call>weather {"city": "Oslo"}<|im_end|>', "It is cold.<|im_end|>"]
    assert left_out == {}


def test_generation_tags_without_an_end_are_told_of(learnt):
    bare = TAGGED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    runs, left_out = learnt(bare, [user("q"), assistant("a"), user("r"), assistant("b")])
    assert runs == ["a", "b"]
    assert left_out == {"an end of assistant turns, so that answers would not end": 2}


def test_generation_tags_around_parts_of_turns(learnt):
    parts = "{{ m.content[:2] }}{% endgeneration %}|{% generation %}{{ m.content[2:] }}"
    split = TAGGED.replace("{{ m.content }}{% for", parts + "{% for", 1)
    with pytest.raises(SourceError, match=r"changes the text of messages\[1\]"):
        learnt(split, [user("q"), assistant("abcd")])
    thought = TAGGED.replace(
        "{% generation %}{{ m.content }}{% for",
        "{% generation %}hm{% endgeneration %} - {% generation %}{{ m.content }}{% for",
    )
    assert learnt(thought, [user("q"), assistant("abcd")])[0] == ["hm", "abcd<|im_end|>"]
    with pytest.raises(SourceError, match="marks 4 parts of 2 assistant turns"):
        learnt(thought, [user("q"), assistant("a", train=False), user("r"), assistant("b")])


def test_an_end_that_only_the_last_turn_has(learnt):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<eos>"
    runs, left_out = learnt(template, [user("q"), assistant("a"), user("r"), assistant("b")])
    assert runs == ["a", "b<eos>"]
    assert left_out == {"an end of assistant turns, so that answers would not end": 1}


@pytest.mark.parametrize("answer", ["b", ">", "|im_end|>"])
def test_a_template_without_an_end_is_told_of_and_no_other(learnt, answer):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    runs, left_out = learnt(template, [user("q"), assistant(answer)])
    assert runs == [answer + "\n"]
    assert list(left_out.values()) == [1]
    assert learnt(CHATML, [user("q"), assistant(answer)]) == ([answer + "<|im_end|>"], {})


@pytest.mark.parametrize("space", [" ", "  ", " \n ", "\n\n"])
def test_the_header_of_the_next_turn_is_not_learnt_where_turns_have_no_end(learnt, space):
    """A token of a space and the next header's word is the header's."""
    template = (
        "{% for m in messages %}{{ 'USER' if m.role == 'user' else 'ASSISTANT' }}: {{ m.content }}"
        + space
        + "{% endfor %}"
    )
    talk = [user("q"), assistant("a"), user("r"), assistant("b ")]
    runs, left_out = learnt(template, talk)
    line = space[: space.rfind("\n") + 1]
    assert runs == ["a" + line, "b" + (" " + line if line else "")]
    assert sum(left_out.values()) == 2


def test_a_prompt_that_begins_the_reasoning(learnt):
    """As of models that always reason: the prompt opens it, earlier answers go without."""
    prompt = "{{- '<|im_start|>assistant\\n' }}{%- endif"
    template = STRIPPING.replace(prompt, prompt.replace("assistant\\n", "assistant\\n<think>\\n"))
    assert template != STRIPPING
    talk = [user("q"), assistant("a"), user("r"), assistant("b", reasoning_content="R")]
    assert learnt(template, talk)[0] == ["a<|im_end|>", "R\n</think>\n\nb<|im_end|>"]


# --- what is left out ---


PLAIN = CHATML.split("{% if m.r")[0] + "{{ m.content }}<|im_end|>\n{% endfor %}"


def test_keys_that_a_template_leaves_out_are_counted(learnt):
    talk = [user("q"), assistant("a", reasoning_content="r", id="x"), user("r"), assistant("b")]
    runs, left_out = learnt(PLAIN, talk, tools=[CALL])
    assert runs == ["a<|im_end|>", "b<|im_end|>"]
    assert left_out == {"reasoning_content": 1, "id": 1, "tools": 1}
    assert learnt(TOOLS + PLAIN, [user("q"), assistant("a")], tools=[CALL])[1] == {}


def test_parts_of_calls_that_are_left_out_are_counted(learnt):
    template = CHATML.replace(" {{ c.function.arguments | tojson }}", "")
    talk = [user("q"), assistant("x", tool_calls=[CALL])]
    assert learnt(template, talk)[1] == {"parts of tool_calls": 1}


def test_system_turns_that_are_left_out_are_counted(learnt):
    system = {"role": "system", "content": "be brief"}
    assert learnt(NAMED.replace("{% if m.role == 'user' %}", "{% if m.role == 'system' %}"
                  "{% elif m.role == 'user' %}"), [system, user("q"), assistant("a")])[1] == {
        "text of system turns": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [user("q"), assistant("", tool_calls=[CALL])],
            r"leaves out the tool_calls of messages\[1\]",
        ),
        (
            [user("q"), assistant("x"), {"role": "tool", "content": "q"}, assistant("y")],
            r"leaves out messages\[2\] \(tool\)",
        ),
    ],
)
def test_what_cannot_be_left_out_is_refused(learnt, messages, reason):
    template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>"
        "{{ m.content }}<eos>{% endif %}{% endfor %}"
    )
    with pytest.raises(SourceError, match=rf"source 's': .*line 1: the chat template {reason}"):
        learnt(template, messages)


def test_a_users_text_that_is_changed_is_refused(learnt):
    template = "{% for m in messages %}{{ m.content | replace('w', 'W') }}<eos>{% endfor %}"
    with pytest.raises(SourceError, match=r"messages\[0\]"):
        learnt(template, [user("why"), assistant("a")])


def test_a_template_that_writes_bos_gives_one(learnt, bytes_tokenizer):
    from mixgym.envs.sources.rows.row import Row

    tokenizer = copy(bytes_tokenizer)
    tokenizer.chat_template = "{{ '<eos>' }}" + CHATML
    row = Row((("user", "q"), ("assistant", "a")), None, {}, "f", 1)
    tokens = encode_rows([row], tokenizer, DataOptions(max_length=512), "s").rows.tokens
    turns = [user("q"), assistant("a")]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert tokens.tolist() == ids[: len(tokens)]
    assert (tokens == tokenizer.eos_token_id).sum() == 1
