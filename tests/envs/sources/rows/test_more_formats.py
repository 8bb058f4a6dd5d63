"""ShareGPT, parts of contents, tools, preferences: from rows as their tools write them."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.reading import read_rows


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


def turn(speaker, value, **keys):
    return {"from": speaker, "value": value, **keys}


def read(write, *rows, malformed="error"):
    return read_rows({"train": write("a.jsonl", rows)}, "s", malformed)


def only(write, row):
    (found,) = read(write, row).rows["train"]
    return found


# --- ShareGPT ---


def test_sharegpt(write):
    talk = [turn("system", "be"), turn("human", "hi"), turn("gpt", "yo")]
    found = read(write, {"id": "x", "conversations": talk})
    assert (found.row_format, dict(found.unused)) == ("conversations", {"id": 1})
    (row,) = found.rows["train"]
    assert row.messages == (("system", "be"), ("user", "hi"), ("assistant", "yo"))
    assert only(write, {"conversations": talk[1:], "system": "be"}).messages == row.messages
    assert only(write, {"conversations": [user("hi"), assistant("yo")]}).messages[1][1] == "yo"
    muted = only(write, {"conversations": [*talk, turn("human", "r"), turn("gpt", "z", weight=0)]})
    assert muted.muted == {4}


def test_sharegpt_s_tools(write):
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    talk = [
        turn("human", "q"),
        turn("function_call", json.dumps(call)),
        turn("observation", "cold"),
        turn("gpt", "It is cold."),
    ]
    row = only(write, {"conversations": talk, "tools": json.dumps([call])})
    assert [role for role, _ in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.turns()[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert row.tools() == [call]


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        ([turn("alien", "q"), turn("gpt", "a")], r"conversations\[0\] is from 'alien'; known: hum"),
        ([turn("human", "q"), turn("gpt", "")], r"conversations\[1\]: 'content' is empty"),
        ([turn("human", "q")], "'conversations' has no assistant turn"),
        ([turn("human", "q"), turn("function_call", "f(x)")], r"\[1\] calls a function, and its"),
        ([turn("human", "q", role="system"), turn("gpt", "a")], "'from' and 'role', and they dif"),
        ([], "'conversations' is empty"),
        ("q", "'conversations' is not a list of turns"),
    ],
)
def test_unusable_conversations(write, talk, reason):
    good = {"conversations": [turn("human", "q"), turn("gpt", "a")]}
    with pytest.raises(SourceError, match=f"line 2: .*{reason}"):
        read(write, good, {"conversations": talk})


# --- contents in parts, tables of turns ---


def test_contents_in_parts(write):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    system = [{"type": "text", "text": "be"}]
    talk = [{"role": "system", "content": system}, user(parts), assistant(["It"])]
    row = only(write, {"messages": talk, "system": "be"})
    assert row.messages == (("system", "be"), ("user", "What is this?"), ("assistant", "It"))
    picture = [user([parts[0], {"type": "image_url", "image_url": {"url": "x"}}]), assistant("a")]
    good = {"messages": [user("q"), assistant("a")]}
    with pytest.raises(
        SourceError, match=r"messages\[0\]: part 1 of 'content' is 'image_url'; only texts"
    ):
        read(write, good, {"messages": picture})
    with pytest.raises(SourceError, match=r"part 0 of 'content' is without a text"):
        read(write, good, {"messages": [user([{"type": "text"}]), assistant("a")]})


def test_turns_of_a_table_with_tools(tmp_path):
    call = {"name": "f", "arguments": '{"x": 1}'}
    talk = [
        {"role": "user", "content": "q", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "2", "tool_calls": None},
        {"role": "assistant", "content": "Two.", "tool_calls": None},
    ]
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"messages": talk}]), path)
    (row,) = read_rows({"train": path}, "s").rows["train"]
    assert row.messages[2] == ("tool", "2")
    (made,) = row.turns()[1]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": {"x": 1}}
    assert set(row.turns()[0]) == {"role", "content"}
    columns = {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}
    pa.parquet.write_table(pa.Table.from_pylist([columns]), path)
    (row,) = read_rows({"train": path}, "s").rows["train"]
    assert row.messages == (("user", "q"), ("assistant", "a"))


# --- preferences ---

WHOLE = [user("q"), assistant("old"), user("r"), assistant("good")]


@pytest.mark.parametrize(
    ("row", "muted"),
    [
        ({"prompt": "r", "chosen": "good", "rejected": "bad"}, set()),
        ({"prompt": "r", "chosen": [assistant("good")], "rejected": [assistant("bad")]}, set()),
        ({"prompt": "r", "chosen": assistant("good"), "rejected": assistant("bad")}, set()),
        ({"prompt": "r", "chosen": [user("r"), assistant("good")]}, set()),
        ({"prompt": WHOLE[:3], "chosen": "good", "rejected": "bad"}, {1}),
        ({"prompt": WHOLE[:3], "chosen": [assistant("good")]}, {1}),
        ({"chosen": WHOLE, "rejected": [*WHOLE[:3], assistant("bad")]}, {1}),
        ({"chosen": WHOLE}, {1}),
        ({"chosen": WHOLE, "rejected": WHOLE}, {1}),
        ({"chosen": WHOLE, "rejected": [WHOLE[0], assistant("bad")]}, set()),
        ({"prompt": [turn("human", "r")], "chosen": [turn("gpt", "good")]}, set()),
    ],
)
def test_what_was_chosen_is_learnt(write, row, muted):
    found = read(write, {**row, "score": 3})
    assert (found.row_format, dict(found.unused)) == ("chosen", {"score": 1})
    (row,) = found.rows["train"]
    talk = tuple((t["role"], t["content"]) for t in WHOLE)
    assert row.messages == (talk if len(row.messages) > 2 else talk[2:])
    assert row.muted == muted
    assert row.columns == {"score": 3}


def test_preferences_with_a_system_text(write):
    row = only(write, {"system": "be", "prompt": "r", "chosen": "good", "rejected": "bad"})
    assert [role for role, _ in row.messages] == ["system", "user", "assistant"]
    talk = [{"role": "system", "content": "own"}, user("r"), assistant("good")]
    assert only(write, {"chosen": talk}).messages[0] == ("system", "own")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "good"}, "there is no 'prompt' before it"),
        ({"chosen": [assistant("good")]}, "begins with an answer and there is no 'prompt'"),
        ({"chosen": [user("q")]}, "'chosen' has no assistant turn of its own"),
        ({"prompt": "q", "chosen": ""}, "'chosen' is empty"),
        ({"prompt": "q", "chosen": [assistant("a"), 3]}, "must be an object"),
    ],
)
def test_unusable_preferences(write, row, reason):
    with pytest.raises(SourceError, match=f"line 2: .*{reason}"):
        read(write, {"prompt": "r", "chosen": "good"}, row)


def test_older_formats_go_first(write):
    row = {"prompt": "q", "completion": "a", "chosen": "b", "conversations": [turn("gpt", "c")]}
    found = read(write, row)
    assert found.row_format == "prompt"
    assert dict(found.unused) == {"chosen": 1, "conversations": 1}
