import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.options import SPLITS
from mixgym.envs.random_streams import stream
from mixgym.envs.sources.rows.row import Row
from mixgym.envs.sources.splits import cut_splits, split_rows


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


@given(
    counts=st.dictionaries(
        st.sampled_from(["train", "valid", "reward", "select", "test"]),
        st.integers(8, 40),
        min_size=1,
    ),
    trained=st.booleans(),
)
def test_cut_splits_are_those_whose_rows_stood_in_the_train_file(counts, trained):
    parts = {role: rows(n, role) for role, n in counts.items()}
    splits, _ = split(parts, 0.1, trained)
    cut = {
        name for name in SPLITS[1:] if trained and any(row.file == "train" for row in splits[name])
    }
    assert set(cut_splits(parts, trained)) == cut
