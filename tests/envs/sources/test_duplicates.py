import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.sources.duplicates import handle_duplicates
from mixgym.envs.sources.rows.row import Row


def handle(splits, policy):
    return handle_duplicates({"s": splits}, policy)["s"]


def named(**texts):
    splits = {
        name: tuple(
            Row((), t, {}, f"{name}.jsonl", i) for i, t in enumerate(texts.get(name, ""), 1)
        )
        for name in SPLITS
    }
    return splits


def texts_of(splits):
    return {name: "".join(str(row.text) for row in part) for name, part in splits.items()}


DUPLICATED = {"train": "abbcde", "reward": "cx", "select": "dy", "test": "exc"}
COUNTS = {
    "duplicates: within train": 1,
    "duplicates: train in reward": 1,
    "duplicates: train in select": 1,
    "duplicates: train in test": 2,
    "duplicates: reward in test": 2,
}


def test_duplicates_are_counted_and_kept():
    splits, counts = handle(named(**DUPLICATED), "report")
    assert texts_of(splits) == DUPLICATED
    assert counts == COUNTS


def test_dropping_keeps_test_whole_and_the_splits_apart():
    splits, counts = handle(named(**DUPLICATED), "drop")
    assert texts_of(splits) == {"train": "abb", "reward": "", "select": "dy", "test": "exc"}
    assert counts == {**COUNTS, "rows dropped: duplicates": 5}


def test_duplicates_can_be_refused():
    with pytest.raises(
        SourceError, match=r"train row train.jsonl line 3 stands again in test, test.jsonl line 2"
    ):
        handle(named(train="abc", test="xc"), "error")
    assert handle(named(train="abb", test="x"), "error")[1] == {"duplicates: within train": 1}


@given(texts=st.fixed_dictionaries({name: st.text("abcdef", max_size=8) for name in SPLITS}))
def test_after_dropping_no_row_stands_in_two_splits(texts):
    splits, _ = handle(named(**texts), "drop")
    sets = [set(part) for part in texts_of(splits).values()]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert texts_of(splits)["test"] == texts["test"]


# --- between sources ---


def test_rows_of_two_sources_are_counted_and_kept():
    found = handle_duplicates({"a": named(train="abc", test="t"), "b": named(train="xt", test="c")})
    assert found["a"][1] == {"duplicates: train in test of b": 1}
    assert found["b"][1] == {"duplicates: train in test of a": 1}
    assert texts_of(found["a"][0])["train"] == "abc"


def test_the_later_split_keeps_a_row_whatever_its_source():
    found = handle_duplicates(
        {"a": named(train="abc", reward="rs", test="t"), "b": named(reward="b", test="cr")}, "drop"
    )
    assert texts_of(found["a"][0]) == {"train": "a", "reward": "s", "select": "", "test": "t"}
    assert texts_of(found["b"][0]) == {"train": "", "reward": "b", "select": "", "test": "cr"}
    assert found["a"][1]["rows dropped: duplicates"] == 3
    assert found["a"][1]["duplicates: reward in test of b"] == 1


def test_one_split_of_two_sources_may_share_rows():
    found = handle_duplicates({"a": named(train="x", test="t"), "b": named(train="x", test="t")})
    assert [counts for _, counts in found.values()] == [{}, {}]


def test_a_leak_between_sources_is_refused_by_both_names():
    with pytest.raises(
        SourceError,
        match=r"source 'a': the train row train.jsonl line 2 stands again in test of source 'b', "
        "test.jsonl line 1",
    ):
        handle_duplicates({"a": named(train="ab"), "b": named(test="b")}, "error")


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.fixed_dictionaries({name: st.text("abcdef", max_size=6) for name in SPLITS}),
        min_size=1,
    )
)
def test_after_dropping_no_row_stands_in_two_splits_of_any_source(texts):
    found = handle_duplicates({name: named(**parts) for name, parts in texts.items()}, "drop")
    by_split = {
        split: {row.text for splits, _ in found.values() for row in splits[split]}
        for split in SPLITS
    }
    assert sum(map(len, by_split.values())) == len(set().union(*by_split.values()))
