import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.errors import SourceError
from mixgym.envs.sources.reading import Reading, read_rows

PAIRS = [("instruction", "output"), ("prompt", "completion"), ("question", "answer")]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def read(path, malformed="error"):
    return read_rows({"train": path}, "s", malformed)


def only(write, row):
    return read(write("a.jsonl", [row])).rows["train"][0]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


# --- columns ---


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_becomes_a_system_turn(write, names, column):
    row = only(write, {names[0]: "q", names[1]: "a", column: "Be brief."})
    assert row.messages == (("system", "Be brief."), ("user", "q"), ("assistant", "a"))
    for nothing in (None, "", "  "):
        assert len(only(write, {names[0]: "q", names[1]: "a", column: nothing}).messages) == 2


@pytest.mark.parametrize("names", PAIRS)
def test_input_and_context_follow_the_users_text(write, names):
    row = only(write, {names[0]: "q", names[1]: "a", "context": "The passage.", "input": "x"})
    assert row.messages[0] == ("user", "q\n\nx\n\nThe passage.")


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("history", [[["q0", "a0"]], [user("q0"), assistant("a0")]])
def test_history_is_context_and_not_learnt(write, names, history):
    row = only(write, {names[0]: "q", names[1]: "a", "system": "s", "history": history})
    assert row.messages == (
        ("system", "s"),
        ("user", "q0"),
        ("assistant", "a0"),
        ("user", "q"),
        ("assistant", "a"),
    )
    assert row.muted == {2}


@pytest.mark.parametrize("names", PAIRS)
def test_response_stands_for_the_answer_as_in_dolly(write, names):
    row = only(write, {names[0]: "q", "context": "c", "response": "a", "category": "open"})
    assert row.messages == (("user", "q\n\nc"), ("assistant", "a"))


def test_columns_beside_messages(write):
    talk = [user("q"), assistant("a")]
    row = only(write, {"messages": talk, "system": "s", "history": [["q0", "a0"]]})
    assert [text for _, text in row.messages] == ["s", "q0", "a0", "q", "a"]
    assert row.muted == {2}
    own = [{"role": "system", "content": "s"}, *talk]
    row = only(write, {"messages": own, "system": "s ", "history": [["q0", "a0"]]})
    assert row.messages[:2] == (("system", "s"), ("user", "q0"))
    with pytest.raises(SourceError, match="line 1: the system column and the first turn"):
        only(write, {"messages": own, "system": "another"})


def test_tools_may_be_a_list_or_its_json(write):
    talk = {"messages": [user("q"), assistant("a")]}
    for tools in ([CALL], json.dumps([CALL])):
        assert only(write, {**talk, "tools": tools}).tools() == [CALL]
    for nothing in (None, [], ""):
        assert only(write, {**talk, "tools": nothing}).tools() is None


def test_columns_without_a_use_are_counted_and_kept_for_strata(write):
    good = {"prompt": "q", "completion": "a"}
    rows = [{**good, "id": i, "url": "u" if i else None, "input": ""} for i in range(4)]
    found = read(write("a.jsonl", [*rows, {**good, "messages": [user("x"), assistant("y")]}]))
    assert found.unused == {"id": 4, "url": 3, "messages": 1}
    assert found.rows["train"][1].columns == {"id": 1, "url": "u"}


def test_null_columns_make_no_format(write):
    rows = [{"messages": None, "prompt": "q", "completion": "a", "text": None}] * 2
    found = read(write("a.jsonl", rows))
    assert (found.row_format, found.unused) == ("prompt", {})


def test_text_rows_use_no_other_column(write):
    found = read(write("a.jsonl", [{"text": "x", "system": "s", "tools": [CALL]}]))
    assert found.unused == {"system": 1, "tools": 1}


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        ({"weight": 0}, True),
        ({"weight": 1}, False),
        ({"train": False}, True),
        ({"loss": False}, True),
        ({"masked": True}, True),
        ({"loss": 0.0}, False),  # a measurement, as far as anyone can tell
        ({"weight": 72.5}, False),
    ],
)
def test_rows_that_say_not_to_learn_them_are_left_out(write, extra, left_out):
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "p", "completion": "b", **extra}]
    found = read(write("a.jsonl", rows))
    assert (found.left_out, len(found.rows["train"])) == ((1, 1) if left_out else (0, 2))
    told = dict(found.unused)
    assert told == ({} if left_out or extra == {"weight": 1} else dict.fromkeys(extra, 1))


# --- turns ---


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"loss": False},
        {"train": False},
        {"trainable": "false"},
        {"masked": True},
        {"ignore": 1},
        {"loss_mask": 0},
        {"weight": 0, "train": False},
    ],
)
def test_turns_can_say_that_they_are_not_learnt(write, flag):
    row = only(
        write, {"messages": [user("q"), assistant("BAD", **flag), user("r"), assistant("b")]}
    )
    assert row.muted == {1}
    assert not row.extras


@pytest.mark.parametrize(
    "flag", [{"weight": 1}, {"train": True}, {"masked": False}, {"loss": None}]
)
def test_turns_can_say_that_they_are_learnt(write, flag):
    assert only(write, {"messages": [user("q"), assistant("a", **flag)]}).muted == frozenset()


BROKEN = [
    ({"weight": 0.5}, "'weight' is 0.5"),
    ({"weight": -1}, "'weight' is -1"),
    ({"loss": "maybe"}, "'loss' is 'maybe'"),
    ({"weight": 1, "train": False}, "'weight' and 'train' contradict"),
    ({"mask": True}, "'mask' is read in two ways"),
    ({"train_detail": []}, "parts of a turn cannot be chosen"),
    ({"tool_calls": {"name": "f"}}, "'tool_calls' is of type dict"),
    ({"tool_calls": ["f"]}, "'tool_calls' holds of type str"),
    ({"reasoning_content": ["x"]}, "'reasoning_content' is of type list"),
    ({"reasoning_content": "\ud800"}, "surrogate"),
]


@pytest.mark.parametrize(("keys", "reason"), BROKEN)
def test_turns_that_are_not_understood_are_refused_by_name(write, keys, reason):
    good = {"messages": [user("q"), assistant("a")]}
    path = write("a.jsonl", [good, {"messages": [user("q"), assistant("a", **keys)]}])
    with pytest.raises(SourceError) as caught:
        read(path)
    assert f"{path} line 2: messages[1]: " in str(caught.value)
    assert reason in str(caught.value)
    assert read(path, "skip").skipped == 1


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"system": 3}, "'system' is of type int"),
        ({"system": "a", "system_prompt": "b"}, "'system' and 'system_prompt' differ"),
        ({"context": ["x"]}, "'context' is of type list"),
        ({"history": "q"}, "'history' is of type str"),
        ({"history": [["q"]]}, r"history\[0\] has 1 texts"),
        ({"history": [["q", ""]]}, r"history\[0\]: 'content' is empty"),
        ({"tools": {"name": "f"}}, "'tools' is of type dict"),
        ({"tools": "f"}, "'tools' is a text that holds no JSON list"),
    ],
)
def test_columns_that_are_not_understood_are_refused_by_name(write, columns, reason):
    good = {"prompt": "q", "completion": "a"}
    with pytest.raises(SourceError, match=f"line 2: {reason}"):
        read(write("a.jsonl", [good, {**good, **columns}]))


def test_flags_that_ask_for_a_users_turn_are_counted(write):
    talk = [{**user("q"), "train": True}, assistant("a", train=True)]
    found = read(write("a.jsonl", [{"messages": talk}] * 3))
    assert found.unused == {"train of user turns (never learnt)": 3}


def test_an_answer_may_be_a_call_alone(write):
    text = {**CALL, "function": {"name": "weather", "arguments": json.dumps({"city": "Oslo"})}}
    talk = [user("q"), assistant(None, tool_calls=[text]), {"role": "tool", "content": "4"}]
    row = only(write, {"messages": [*talk, assistant("cold")]})
    assert row.messages[1:3] == (("assistant", ""), ("tool", "4"))
    assert row.turns()[1]["tool_calls"] == [CALL]  # arguments as an object
    with pytest.raises(SourceError, match=r"messages\[1\]: 'content' is missing"):
        only(write, {"messages": [user("q"), assistant(None)]})


def test_rows_that_differ_in_what_the_template_gets_are_no_duplicates(write):
    talks = [[user("q"), assistant("a", **k)] for k in ({}, {"reasoning_content": "r"})]
    muted = [user("q"), assistant("a", weight=0)]
    found = read(write("a.jsonl", [{"messages": t} for t in (*talks, muted)])).rows["train"]
    assert len({row.content for row in found}) == 2
    assert found[0].content == found[2].content


@given(
    st.dictionaries(
        st.text(min_size=1).filter(str.isprintable),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    )
)
def test_every_filled_column_is_used_followed_counted_or_refused(columns):
    from mixgym.envs.sources.rows.formats import FORMATS, is_left_out, parse_row
    from mixgym.envs.sources.rows.turns import IGNORE, LEARN, MalformedError

    row = {**columns, "prompt": "q", "completion": "a"}
    form = FORMATS["prompt"]
    try:
        parsed = parse_row(row, form, form.find(row))
    except MalformedError:
        return
    filled = {key for key, value in columns.items() if value not in (None, "", [])}
    flags = {*LEARN, *IGNORE}
    assert filled - {*form.fields, *flags} <= set(parsed.unused) or is_left_out(row)


# --- plain words ---


@pytest.mark.parametrize("no", [0, 0.0, False, "0", "0.0", "false", "False", " no "])
@pytest.mark.parametrize("key", ["weight", "loss_weight", "train", "trainable", "should_train"])
def test_a_plain_no_of_a_row_or_of_a_turn_is_understood(write, key, no):
    talk = [user("q"), assistant("bad", **{key: no}), user("r"), assistant("good")]
    assert only(write, {"messages": talk}).muted == {1}
    rows = [{"prompt": "q", "completion": "a", key: no}, {"prompt": "r", "completion": "b"}]
    found = read(write("a.jsonl", rows))
    assert (len(found.rows["train"]), found.left_out, dict(found.unused)) == (1, 1, {})


@pytest.mark.parametrize("key", ["masked", "is_masked", "no_train", "ignore"])
def test_flags_that_say_the_contrary(write, key):
    talk = [user("q"), assistant("bad", **{key: "1"}), user("r"), assistant("good", **{key: 0})]
    assert only(write, {"messages": talk}).muted == {1}
    rows = [{"text": "a", key: "true"}, {"text": "b", key: 0}]
    found = read(write("a.jsonl", rows))
    assert (len(found.rows["train"]), found.left_out, dict(found.unused)) == (1, 1, {})


@pytest.mark.parametrize("value", [0.5, 2, "half", [0, 1]])
def test_a_weight_of_a_row_that_is_neither_is_told_of(write, value):
    found = read(write("a.jsonl", [{"text": "a", "weight": value}]))
    assert (found.left_out, dict(found.unused)) == (0, {"weight": 1})


def test_a_column_that_may_hold_a_figure_leaves_no_row_out(write):
    found = read(write("a.jsonl", [{"text": "a", "loss": 0}, {"text": "b", "loss": "0"}]))
    assert (found.left_out, dict(found.unused)) == (0, {"loss": 2})


# --- plug-ins ---


def title_and_body(row, names):
    from mixgym.envs.sources.rows.formats import Parsed
    from mixgym.envs.sources.rows.turns import text_of

    turns = (("user", text_of(row, names[0])), ("assistant", text_of(row, names[1])))
    return Parsed(turns, None)


def test_a_format_is_taken_by_its_word(write, monkeypatch):
    from mixgym.envs.sources.rows.formats import FORMATS, as_format

    form = as_format("x", title_and_body, required=(("title",), ("text",)))
    monkeypatch.setitem(FORMATS._found, "lunar:article", form)
    path = write("a.jsonl", [{"title": "t", "text": "b"}])
    assert read(path).row_format == "text", "auto takes what fits of the known ones"
    found = read_rows({"train": path}, "s", how=Reading(row_format="lunar:article"))
    assert found.rows["train"][0].messages == (("user", "t"), ("assistant", "b"))
    assert found.row_format == "lunar:article"
    with pytest.raises(SourceError, match=r"no 'title'.*are in the format 'lunar:article'"):
        read_rows(
            {"train": write("b.jsonl", [{"text": "b"}])},
            "s",
            how=Reading(row_format="lunar:article"),
        )


@pytest.mark.parametrize(
    ("thing", "declared", "sentence"),
    [
        (title_and_body, {}, r"give a RowFormat\(required, parse\)"),
        (title_and_body, {"required": ("title",)}, "give for each part of a row the columns"),
        (lambda row: row, {"required": (("title",),)}, r"parse: takes \(row\), and is called with"),
    ],
)
def test_what_is_no_format_is_refused(thing, declared, sentence):
    from mixgym.envs.errors import ConfigError
    from mixgym.envs.sources.rows.formats import as_format

    with pytest.raises(ConfigError, match=sentence):
        as_format("sources.NAME.format=x", thing, **declared)
