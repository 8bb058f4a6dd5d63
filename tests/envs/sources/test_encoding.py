import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import SourceError
from mixgym.envs.options import DataOptions
from mixgym.envs.sources.encoding import completion_mask, encode_rows, window
from mixgym.envs.sources.reading import Row

TEXTS = [
    "مرحبا كيف حالك",
    "नमस्ते दुनिया",
    "你好、世界。",
    "👩‍👩‍👧 🇩🇪 ok",
    " spaced  out ",
    "\n\nlines\n",
    "é\u0301x",
]
TURNS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


def row(*messages, line=1):
    return Row(tuple(messages), None, {}, "rows.jsonl", line)


def pairs(*texts):
    roles = ("user", "assistant")
    return row(*[(roles[i % 2], text) for i, text in enumerate(texts)])


def encode(tokenizer, rows, **options):
    return encode_rows(rows, tokenizer, DataOptions(**{"max_length": 4096, **options}), "s")


def labelled_runs(tokenizer, encoded, index=0):
    tokens, labels = encoded.rows.row(index)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(int), [0]])))
    return [tokenizer.decode(tokens[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("kind", ["plain_tokenizer", "chat_tokenizer", "bytes_tokenizer"])
@pytest.mark.parametrize("text", TEXTS)
def test_labels_decode_to_the_assistant_turns_and_their_eos(request, kind, text):
    tokenizer = request.getfixturevalue(kind)
    encoded = encode(
        tokenizer, [row(("system", text), *pairs(text, text, "more", "b" + text).messages)]
    )
    eos = tokenizer.eos_token
    assert labelled_runs(tokenizer, encoded) == [text + eos, "b" + text + eos]
    assert encoded.rows.tokens[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TURNS, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
def test_any_text_is_labelled_to_the_character(bytes_tokenizer, texts):
    encoded = encode(bytes_tokenizer, [pairs(*texts)])
    assert labelled_runs(bytes_tokenizer, encoded) == [text + "<eos>" for text in texts[1::2]]


def test_plain_template_text(plain_tokenizer):
    encoded = encode(plain_tokenizer, [row(("system", "be"), ("user", "hi"), ("assistant", "yo"))])
    assert (
        plain_tokenizer.decode(encoded.rows.row(0)[0])
        == "System: be\nUser: hi\nAssistant:\nyo<eos>"
    )


def test_plain_is_forced_on_a_tokenizer_with_a_chat_template(chat_tokenizer):
    encoded = encode(chat_tokenizer, [pairs("hi", "yo")], template="plain")
    assert chat_tokenizer.decode(encoded.rows.row(0)[0]) == "User: hi\nAssistant:\nyo<|im_end|>"


def test_plain_text_is_labelled_but_for_its_first_token(bytes_tokenizer):
    encoded = encode(bytes_tokenizer, [Row((), "abc", {}, "f", 1)])
    assert bytes_tokenizer.decode(encoded.rows.tokens) == "abc<eos>"
    assert encoded.rows.labels.tolist() == [False, True, True, True]


def test_all_labels_everything_but_the_first_token(chat_tokenizer):
    encoded = encode(chat_tokenizer, [pairs("hi", "yo")], labels="all")
    assert encoded.rows.labels.tolist() == [False] + [True] * (len(encoded.rows.tokens) - 1)
    assert chat_tokenizer.decode(encoded.rows.tokens).endswith("yo<|im_end|>\n")


def test_templates_that_trim_or_have_no_generation_prompt(bytes_tokenizer):
    from copy import copy

    tokenizer = copy(bytes_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content | trim }}<eos>{% endif %}{% endfor %}"
    )
    encoded = encode(tokenizer, [pairs("a", " yo ", "b", "yes")])
    assert labelled_runs(tokenizer, encoded) == ["yo<eos>", "yes<eos>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{{ m.content if loop.last else 'cut' }}|{% endfor %}",
            r"leaves out the text of messages\[0\]",
        ),
        (
            "{% for m in messages %}{{ m.content | upper }}|{% endfor %}",
            r"changes the text of messages\[1\]",
        ),
        ("{{ raise_exception('no system turn') }}", "refuses the row .no system turn"),
    ],
)
def test_unusable_templates_say_so(bytes_tokenizer, template, reason):
    from copy import copy

    tokenizer = copy(bytes_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(
        SourceError, match=rf"rows.jsonl line 1: the chat template {reason}.*template to plain"
    ):
        encode(tokenizer, [pairs("a", "b")])
    assert len(encode(tokenizer, [pairs("a", "b")], template="plain").rows) == 1


def test_a_tokenizer_without_eos_is_refused(bytes_tokenizer):
    from copy import deepcopy

    tokenizer = deepcopy(bytes_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(SourceError, match=r"no eos token.*set tokenizer.eos_token"):
        encode(tokenizer, [pairs("a", "b")])


def test_zero_width_tokens_stand_for_the_character_before():
    offsets = np.array([[0, 2], [3, 3], [4, 4], [4, 6]], np.int32)
    assert completion_mask(offsets, [(3, 6)]).tolist() == [False, False, True, True]
    assert completion_mask(offsets, [(0, 3)]).tolist() == [True, True, False, False]
    assert completion_mask(offsets, []).tolist() == [False] * 4


@given(
    runs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=4),
    starts_with_prompt=st.booleans(),
    max_length=st.integers(8, 20),
)
def test_truncation_keeps_the_last_completion(runs, starts_with_prompt, max_length):
    parts = [np.repeat([False, True], run) for run in runs]
    completion = np.concatenate(parts)
    if not starts_with_prompt:
        completion = completion[runs[0][0] :]
    size = runs[-1][1]
    part = window(completion, max_length)
    kept = completion[part]
    assert len(kept) == min(len(completion), max_length)
    if size < max_length:
        assert part.stop == len(completion)
        assert kept[-size:].all()
    else:
        assert kept.sum() >= max_length - 1


def test_truncation_cuts_the_start_of_the_prompt_and_the_end_of_a_huge_completion(bytes_tokenizer):
    rows = [pairs("abcdefghij", "xy"), pairs("q", "0123456789"), Row((), "0123456789", {}, "f", 1)]
    encoded = encode(bytes_tokenizer, rows, max_length=8)
    texts = [bytes_tokenizer.decode(encoded.rows.row(i)[0]) for i in range(3)]
    assert texts == ["ant:\nxy<eos>", "\n0123456", "01234567"]
    assert encoded.rows.lengths.tolist() == [8, 8, 8]
    assert encoded.rows.supervised.tolist() == [3, 7, 7]
    assert encoded.counts == {"rows truncated": 3, "supervised tokens cut": 4 + 3}
    assert encoded.lengths.tolist() == [31, 30, 11]


def test_truncation_counts_the_completions_of_cut_turns(bytes_tokenizer):
    encoded = encode(bytes_tokenizer, [pairs("a", "bcd", "e", "f")], max_length=10)
    assert labelled_runs(bytes_tokenizer, encoded) == ["f<eos>"]
    assert encoded.counts["supervised tokens cut"] == 4


def test_over_long_rows_are_skipped_or_refused_by_policy(bytes_tokenizer):
    rows = [pairs("a", "b"), pairs("a" * 40, "b")]
    encoded = encode(bytes_tokenizer, rows, max_length=32, over_long="skip")
    assert encoded.raw == (rows[0],)
    assert encoded.counts == {"rows skipped: over-long": 1}
    with pytest.raises(
        SourceError, match=r"rows.jsonl line 1 has 60 tokens.*max_length = 32; raise it"
    ):
        encode(bytes_tokenizer, rows, max_length=32, over_long="error")


def test_rows_without_a_supervised_token_are_skipped_with_a_count(bytes_tokenizer):
    from copy import copy

    tokenizer = copy(bytes_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    encoded = encode(tokenizer, [row(("assistant", "b"))])
    assert len(encoded.rows) == 0
    assert encoded.counts == {"rows skipped: no supervised token": 1}


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.tuples(TURNS, TURNS), min_size=1, max_size=4),
    labels=st.sampled_from(["completions", "all"]),
    max_length=st.integers(8, 64),
)
def test_encoded_rows_keep_the_contract(bytes_tokenizer, texts, labels, max_length):
    rows = [pairs(*text) for text in texts]
    found = encode(bytes_tokenizer, rows, labels=labels, max_length=max_length).rows
    assert found.tokens.dtype == np.int32
    assert found.lengths.max() <= max_length
    assert found.supervised.min() >= 1
    assert not found.labels[found.offsets[:-1]].any()
