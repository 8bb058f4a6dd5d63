import json

import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.reading import read_rows

PAIR = (("user", "hi"), ("assistant", "yo"))
GOOD = {"prompt": "hi", "completion": "yo"}


def read(path, malformed="error"):
    return read_rows({"train": path}, "greetings", malformed)


@pytest.mark.parametrize(
    ("row", "row_format", "content"),
    [
        (GOOD, "prompt", (PAIR, None)),
        ({"question": "hi", "answer": "yo"}, "question", (PAIR, None)),
        ({"instruction": "hi", "output": "yo"}, "instruction", (PAIR, None)),
        ({"instruction": "hi", "input": "", "output": "yo"}, "instruction", (PAIR, None)),
        ({"instruction": "hi", "input": None, "output": "yo"}, "instruction", (PAIR, None)),
        (
            {"instruction": "hi", "input": "Ann", "output": "yo"},
            "instruction",
            ((("user", "hi\n\nAnn"), ("assistant", "yo")), None),
        ),
        ({"text": " once upon "}, "text", ((), " once upon ")),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("system", "be"), *PAIR, *PAIR)]},
            "messages",
            ((("system", "be"), *PAIR, *PAIR), None),
        ),
    ],
)
def test_every_format_becomes_turns_or_text(write, row, row_format, content):
    found = read(write("a.jsonl", [row]))
    assert found.row_format == row_format
    assert found.rows["train"][0].content == content


def test_other_scalar_columns_are_kept(write):
    path = write("a.jsonl", [{**GOOD, "level": 3, "kind": "x", "tags": ["y"], "none": None}])
    assert read(path).rows["train"][0].columns == {"level": 3, "kind": "x"}


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_json_files_hold_a_list(tmp_path, wrap):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(wrap([GOOD, GOOD]), indent=2))
    rows = read(path).rows["train"]
    assert [row.content for row in rows] == [(PAIR, None)] * 2
    assert rows[1].where == f"{path} row 2"


def test_json_file_with_an_object_per_line_is_read_as_such(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    assert [row.where for row in read(path).rows["train"]] == [f"{path} line 1", f"{path} line 2"]


def test_only_newlines_end_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    text = (
        '\ufeff{"prompt": "a\u2028b\x85c", "completion": "yo"}\r\n\n  \n'
        '{"prompt": "d", "completion": "e"}'
    )
    path.write_bytes(text.encode("utf-8"))
    rows = read(path).rows["train"]
    assert rows[0].messages[0][1] == "a\u2028b\x85c"
    assert [row.line for row in rows] == [1, 4]


def turns(*pairs):
    return {"messages": [{"role": r, "content": c} for r, c in pairs]}


CHAT = turns(("user", "hi"), ("assistant", "yo"))
BROKEN = [
    (GOOD, "{", "not valid JSON"),
    (GOOD, "[1]", "list, not an object"),
    (GOOD, "null", "null, not an object"),
    (GOOD, '{"prompt": "hi"}', "no 'completion'"),
    (GOOD, '{"prompt": "hi", "completion": " "}', "'completion' is empty"),
    (GOOD, '{"prompt": "hi", "completion": 5}', "'completion' is of type int"),
    (GOOD, '{"prompt": "\\ud800", "completion": "x"}', "surrogate"),
    (GOOD, json.dumps(CHAT), "the format 'prompt'"),
    (
        {"instruction": "a", "output": "b"},
        '{"instruction": "a", "input": 1, "output": "b"}',
        "'input' is",
    ),
    (CHAT, '{"messages": []}', "'messages' is empty"),
    (CHAT, '{"messages": "hi"}', "not a list"),
    (CHAT, '{"messages": ["hi"]}', "messages[0] is of type str"),
    (CHAT, json.dumps(turns(("user", "hi"), ("bot", "yo"))), "the role 'bot'"),
    (
        CHAT,
        json.dumps(turns(("user", "hi"), ("assistant", None))),
        "messages[1]: 'content' is missing",
    ),
    (CHAT, json.dumps(turns(("user", "hi"))), "no assistant turn"),
]


@pytest.mark.parametrize(("good", "bad", "reason"), BROKEN)
def test_malformed_rows_stop_or_are_skipped_by_policy(tmp_path, good, bad, reason):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(good), json.dumps(good), bad, json.dumps(good)]))
    with pytest.raises(SourceError) as caught:
        read(path)
    message = str(caught.value)
    assert "source 'greetings'" in message
    assert f"{path} line 3" in message
    assert reason in message
    assert "set data.malformed to skip" in message
    found = read(path, "skip")
    assert found.skipped == 1
    assert [row.line for row in found.rows["train"]] == [1, 2, 4]


def test_bytes_that_are_not_utf8_are_placed(tmp_path):
    path = tmp_path / "a.jsonl"
    first = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(first + b'{"prompt": "caf\xe9", "completion": "x"}\n')
    with pytest.raises(
        SourceError, match=f"line 2: not UTF-8: byte 0xe9 at offset {len(first) + 15}.*iconv"
    ):
        read(path)
    assert read(path, "skip").skipped == 1
    as_json = tmp_path / "a.json"
    as_json.write_bytes(b'[{"prompt":\n "caf\xe9", "completion": "x"}]')
    with pytest.raises(SourceError, match="line 2: not UTF-8: byte 0xe9 at offset 17"):
        read(as_json, "skip")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_files_are_errors(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"a\.jsonl is empty; give it rows"):
        read(path, "skip")


def test_unknown_columns_are_named(write):
    with pytest.raises(SourceError, match=r"line 1: columns 'ask', 'reply'.*rename the columns"):
        read(write("a.jsonl", [{"ask": "hi", "reply": "yo"}]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.jsonl", "no file at .*correct the path"), ("a.docx", "unknown type '.docx'")],
)
def test_missing_files_and_unknown_types(write, tmp_path, name, reason):
    write("a.docx", [GOOD])
    with pytest.raises(SourceError, match=reason):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds no rows"),
        ("[{]", "not valid JSON"),
        ("3", "holds a JSON int"),
        ('[{"prompt": "a", "completion": ""}]', "malformed"),
    ],
)
def test_unusable_json_files(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=reason):
        read(path, "skip")
