"""The plain template and the chat template that is saved for it write the same."""

from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from mixgym.envs.errors import SourceError
from mixgym.envs.options import DataOptions
from mixgym.envs.sources.encoding import encode_rows
from mixgym.envs.sources.rendering.plain import PlainTemplate
from mixgym.envs.sources.rendering.special_tokens import beginning_of
from mixgym.envs.sources.rows.row import Extras, Row
from mixgym.envs.sources.templates import choose_template, prompting_as_trained

TURNS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


def with_bos(tokenizer, bos="<s>", single="<s> $A", add=()):
    found = deepcopy(tokenizer)
    found.add_special_tokens({"bos_token": bos, "additional_special_tokens": list(add)})
    ids = [(token, found.convert_tokens_to_ids(token)) for token in (bos, *add, found.eos_token)]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=ids
    )
    return found


@pytest.fixture(scope="session")
def bos_tokenizer(bytes_tokenizer):
    return with_bos(bytes_tokenizer)


def encode(tokenizer, rows, **options):
    return encode_rows(rows, tokenizer, DataOptions(**{"max_length": 4096, **options}), "s")


def pairs(*texts, line=1):
    roles = ("user", "assistant")
    return Row(tuple((roles[i % 2], t) for i, t in enumerate(texts)), None, {}, "f", line)


def prompt_ids(tokenizer, row):
    """What a user gets who follows the documentation of transformers."""
    turns = [{"role": role, "content": content} for role, content in row.messages[:-1]]
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=False
    )


# --- how texts begin ---


def test_what_a_tokenizer_puts_in_front_is_found(bytes_tokenizer, bos_tokenizer):
    assert beginning_of(bytes_tokenizer).ids == ()
    assert beginning_of(bos_tokenizer).ids == (bos_tokenizer.bos_token_id,)
    assert beginning_of(bos_tokenizer).text == "<s>"
    behind = with_bos(bytes_tokenizer, single="$A <eos>")
    assert beginning_of(behind).ids == ()
    two = with_bos(bytes_tokenizer, single="<s> <x> $A <eos>", add=["<x>"])
    assert two.decode(list(beginning_of(two).ids)) == "<s><x>"
    assert beginning_of(two).text == "<s><x>"


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A <eos>", "<s> <x> $A", "$A <eos>", "$A"])
def test_text_rows_begin_as_the_tokenizer_begins_them_and_end_once(bytes_tokenizer, single):
    tokenizer = with_bos(bytes_tokenizer, single=single, add=["<x>"])
    encoded = encode(tokenizer, [Row((), "some text", {}, "f", 1)])
    tokens, labels = encoded.rows.row(0)
    given = tokenizer("some text").input_ids
    eos = tokenizer.eos_token_id
    assert tokens.tolist() == (given if given[-1] == eos else [*given, eos])
    head = len(beginning_of(tokenizer).ids)
    assert labels.tolist() == [i >= max(head, 1) for i in range(len(tokens))]


def test_a_text_that_has_its_bos_and_eos_gets_no_second_ones(bos_tokenizer):
    encoded = encode(bos_tokenizer, [Row((), "<s>abc<eos>", {}, "f", 1)])
    assert bos_tokenizer.decode(encoded.rows.tokens) == "<s>abc<eos>"


@pytest.mark.parametrize("labels", ["completions", "all"])
def test_bos_stays_in_front_when_rows_are_cut(bos_tokenizer, labels):
    rows = [pairs("abcdefghij", "xy"), pairs("q", "0123456789"), Row((), "0123456789", {}, "f", 1)]
    encoded = encode(bos_tokenizer, rows, max_length=8, labels=labels)
    texts = [bos_tokenizer.decode(encoded.rows.row(i)[0]) for i in range(3)]
    assert texts == ["<s>nt:\nxy<eos>", "<s>\n012345", "<s>0123456"]
    assert encoded.rows.lengths.tolist() == [8, 8, 8]
    for i in range(3):
        assert not encoded.rows.row(i)[1][0]
    if labels == "all":  # nothing predicts what follows a cut
        assert [encoded.rows.row(i)[1][1] for i in range(3)] == [False, False, True]
    else:
        assert encoded.rows.supervised.tolist() == [3, 6, 7]


# --- prompts at inference ---


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TURNS, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
@pytest.mark.parametrize("kind", ["bytes_tokenizer", "bos_tokenizer"])
def test_prompts_at_inference_are_those_of_training(request, kind, texts):
    tokenizer = prompting_as_trained(deepcopy(request.getfixturevalue(kind)), "auto")
    row = pairs(*texts)
    tokens, labels = encode(tokenizer, [row]).rows.row(0)
    begin = len(tokens) - labels.tolist()[::-1].index(False)
    assert tokens[:begin].tolist() == prompt_ids(tokenizer, row)
    assert tokenizer.decode(tokens[begin:]) == texts[-1] + "<eos>"


@pytest.mark.parametrize("single", ["<s> $A", "<s> <x> $A", "$A"])
def test_the_whole_conversation_is_written_alike(bytes_tokenizer, single):
    tokenizer = prompting_as_trained(with_bos(bytes_tokenizer, single=single, add=["<x>"]), "auto")
    row = Row((("system", "it's \\n 'so'"), *pairs("a", "b").messages), None, {}, "f", 1)
    turns = [{"role": role, "content": content} for role, content in row.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == PlainTemplate("<eos>", beginning_of(tokenizer).text).render(row).text


def test_rows_stay_the_same_once_the_template_is_saved(bytes_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = deepcopy(bytes_tokenizer)
    before = encode(tokenizer, [pairs("a", "b")]).rows.tokens.tolist()
    prompting_as_trained(tokenizer, "auto").save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == tokenizer.chat_template
    assert isinstance(choose_template(loaded, "auto"), PlainTemplate)
    assert encode(loaded, [pairs("a", "b")]).rows.tokens.tolist() == before


def test_a_template_of_its_own_stays_unless_rows_are_plain(chat_tokenizer):
    own = chat_tokenizer.chat_template
    assert prompting_as_trained(deepcopy(chat_tokenizer), "auto").chat_template == own
    plainly = prompting_as_trained(deepcopy(chat_tokenizer), "plain")
    row = pairs("hi", "yo")
    tokens = encode(chat_tokenizer, [row], template="plain").rows.tokens.tolist()
    ids = prompt_ids(plainly, row)
    assert tokens[: len(ids)] == ids


def test_the_saved_template_refuses_roles_that_it_does_not_know(bytes_tokenizer):
    tokenizer = prompting_as_trained(deepcopy(bytes_tokenizer), "auto")
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


# --- what it cannot show ---


def test_turns_of_tools_and_calls_are_refused_or_skipped(bytes_tokenizer):
    tool = Row((("user", "q"), ("tool", "4"), ("assistant", "a")), None, {}, "f", 1)
    call = Row(
        pairs("q", "a").messages, None, {}, "f", 2, extras=Extras(((1, '{"tool_calls": [{}]}'),))
    )
    for row, reason in (
        (tool, r"f line 1: messages\[1\] has the role 'tool'"),
        (call, "tool_calls"),
    ):
        with pytest.raises(SourceError, match=f"source 's': .*{reason}"):
            encode(bytes_tokenizer, [row])
    skipped = encode(bytes_tokenizer, [tool, call, pairs("q", "a")], malformed="skip")
    assert skipped.counts == {"rows skipped: refused by the template": 2}
    assert len(skipped.rows) == 1


def test_other_keys_are_counted(bytes_tokenizer):
    extras = Extras(((1, '{"reasoning_content": "r", "id": 4}'),), '[{"name": "f"}]')
    row = Row(pairs("q", "a").messages, None, {}, "f", 1, extras=extras)
    assert encode(bytes_tokenizer, [row, row]).left_out == {
        "reasoning_content": 2, "id": 2, "tools": 2
    }  # fmt: skip


@pytest.mark.parametrize("labels", ["completions", "all"])
def test_muted_turns_are_not_learnt_but_read(bytes_tokenizer, labels):
    row = Row(pairs("q", "BAD", "r", "good").messages, None, {}, "f", 1, muted=frozenset({1}))
    tokens, mask = encode(bytes_tokenizer, [row], labels=labels).rows.row(0)
    learnt = bytes_tokenizer.decode(tokens[mask])
    assert "BAD" in bytes_tokenizer.decode(tokens)
    if labels == "completions":
        assert learnt == "good<eos>"
    else:
        assert learnt == "ser: q\nAssistant:\n\nUser: r\nAssistant:\ngood<eos>"


def test_a_row_with_nothing_left_to_learn_is_skipped_with_a_count(bytes_tokenizer):
    row = Row(pairs("q", "a").messages, None, {}, "f", 1, muted=frozenset({1}))
    encoded = encode(bytes_tokenizer, [row])
    assert encoded.counts == {"rows skipped: no supervised token": 1}
