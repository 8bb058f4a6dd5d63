import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, SourceOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.reading import Row
from mixgym.envs.sources.splits import find_files, handle_duplicates, split_rows


def rows(count, file="f", start=0):
    return tuple(Row((), f"{file}{i}", {}, file, i + 1) for i in range(start, start + count))


def split(parts, fraction=0.05, trained=True, seed=0):
    return split_rows(parts, stream(seed, "splits", "s"), fraction, trained)


def sizes(splits):
    return [len(splits[name]) for name in SPLITS]


@given(
    counts=st.dictionaries(
        st.sampled_from(["train", "valid", "reward", "select", "test"]),
        st.integers(1, 40),
        min_size=1,
    ),
    fraction=st.floats(0, 1),
    trained=st.booleans(),
)
def test_splits_are_disjoint_and_exhaustive(counts, fraction, trained):
    if "reward" in counts and "select" in counts:
        counts.pop("valid", None)
    parts = {role: rows(n, role) for role, n in counts.items()}
    splits, unused = split(parts, fraction, trained)
    texts = [row.text for name in SPLITS for row in splits[name]]
    assert len(texts) == len(set(texts))
    assert len(texts) + unused == sum(counts.values())
    for name in SPLITS:
        places = [(row.file, row.line) for row in splits[name]]
        assert places == sorted(places)
    assert trained or not splits["train"]


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (100, 0.05, [85, 5, 5, 5]),
        (10, 0.05, [7, 1, 1, 1]),
        (4, 0.05, [1, 1, 1, 1]),
        (3, 0.05, [3, 0, 0, 0]),
        (10, 0.0, [10, 0, 0, 0]),
        (10, 1.0, [1, 3, 3, 3]),
    ],
)
def test_a_single_file_is_cut(count, fraction, expected):
    assert sizes(split({"train": rows(count)}, fraction)[0]) == expected


def test_valid_is_halved_or_goes_to_the_split_without_a_file():
    parts = {"train": rows(10, "a"), "valid": rows(5, "v"), "test": rows(3, "t")}
    assert sizes(split(parts)[0]) == [10, 3, 2, 3]
    assert sizes(split({**parts, "reward": rows(1, "r")})[0]) == [10, 1, 5, 3]
    assert sizes(split({"train": rows(10, "a"), "test": rows(3, "t")})[0]) == [8, 1, 1, 3]
    assert sizes(split({"train": rows(10, "a"), "valid": rows(4, "v")})[0]) == [9, 2, 2, 1]


def test_a_target_only_source_has_no_train_rows():
    assert sizes(split({"train": rows(8)}, trained=False)[0]) == [0, 3, 3, 2]
    parts = {"train": rows(8, "a"), "valid": rows(4, "v"), "test": rows(3, "t")}
    splits, unused = split(parts, trained=False)
    assert sizes(splits) == [0, 2, 2, 3]
    assert unused == 8


def test_the_seed_decides_who_goes_where():
    parts = {"train": rows(200)}
    assert split(parts, seed=1) == split(parts, seed=1)
    assert split(parts, seed=1)[0]["test"] != split(parts, seed=2)[0]["test"]
    draws = [stream(0, *names).integers(1 << 30) for names in (("a",), ("b",), ("a", "b"), ("ab",))]
    assert len(set(draws)) == 4


# --- files ---


def test_folders_are_searched_for_known_names(write):
    row = {"text": "x"}
    folder = write("d/train.jsonl", [row]).parent
    write("d/dev.json", [row])
    write("d/test.jsonl", [row])
    other = write("other.jsonl", [row])
    found = find_files(SourceOptions(path=str(folder)), "s")
    assert {k: v.name for k, v in found.items()} == {
        "train": "train.jsonl",
        "valid": "dev.json",
        "test": "test.jsonl",
    }
    found = find_files(SourceOptions(path=str(folder), test=str(other)), "s")
    assert found["test"] == other
    same = SourceOptions(path=str(folder), reward=str(folder / "dev.json"), select=str(other))
    assert "valid" not in find_files(same, "s")
    with pytest.raises(SourceError, match="both its valid and its reward file"):
        find_files(SourceOptions(path=str(folder), reward=str(folder / "dev.json")), "s")
    write("d/validation.jsonl", [row])
    with pytest.raises(
        SourceError, match=r"has validation.jsonl and dev.json, both its valid file; keep one"
    ):
        find_files(SourceOptions(path=str(folder)), "s")


def test_a_folder_without_train_serves_a_target_only(write, tmp_path):
    folder = write("d/test.jsonl", [{"text": "x"}]).parent
    assert list(find_files(SourceOptions(path=str(folder), train=False), "s")) == ["test"]
    with pytest.raises(
        SourceError, match=r"no train.jsonl or train.json \(found: test.jsonl\).*train: false"
    ):
        find_files(SourceOptions(path=str(folder)), "s")
    with pytest.raises(SourceError, match="no train, valid or test file"):
        find_files(SourceOptions(path=str(tmp_path), train=False), "s")


def test_missing_paths_say_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError, match=f"'s': no file or folder at 'data/gone' .looked in {tmp_path}"
    ):
        find_files(SourceOptions(path="data/gone"), "s")


# --- duplicates ---


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
    splits, counts = handle_duplicates(named(**DUPLICATED), "s", "report")
    assert texts_of(splits) == DUPLICATED
    assert counts == COUNTS


def test_dropping_keeps_test_whole_and_the_splits_apart():
    splits, counts = handle_duplicates(named(**DUPLICATED), "s", "drop")
    assert texts_of(splits) == {"train": "abb", "reward": "", "select": "dy", "test": "exc"}
    assert counts == {**COUNTS, "rows dropped: duplicates": 5}


def test_duplicates_can_be_refused():
    with pytest.raises(
        SourceError, match=r"train row train.jsonl line 3 stands again in test, test.jsonl line 2"
    ):
        handle_duplicates(named(train="abc", test="xc"), "s", "error")
    assert handle_duplicates(named(train="abb", test="x"), "s", "error")[1] == {
        "duplicates: within train": 1
    }


@given(texts=st.fixed_dictionaries({name: st.text("abcdef", max_size=8) for name in SPLITS}))
def test_after_dropping_no_row_stands_in_two_splits(texts):
    splits, _ = handle_duplicates(named(**texts), "s", "drop")
    sets = [set(part) for part in texts_of(splits).values()]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert texts_of(splits)["test"] == texts["test"]
