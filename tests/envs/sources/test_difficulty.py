from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.options import SPLITS
from mixgym.envs.sources.difficulty import (
    LengthScorer,
    bin_rows,
    cap_rows,
    equal_groups,
    plugin_scorers,
    scorer_for,
    stratify,
)
from mixgym.envs.sources.encoding import Encoding
from mixgym.envs.sources.reading import Row
from mixgym.envs.sources.scorers import SCORERS, check_word
from mixgym.envs.sources.source import EncodedRows

SCORES = st.lists(st.integers(0, 12).map(float), max_size=40).map(lambda x: np.array(x, np.float64))


def encoding(lengths=(), cells=None, cut=10**6):
    rows = [(np.zeros(min(n, cut), np.int32), np.ones(min(n, cut), np.bool_)) for n in lengths]
    cells = [None] * len(lengths) if cells is None else cells
    raw = tuple(
        Row((), "x", {} if cell is None else {"level": cell}, "a.jsonl", i)
        for i, cell in enumerate(cells, 1)
    )
    return Encoding(EncodedRows.from_lists(rows), raw, np.array(lengths, np.int64), Counter())


def parts(**lengths):
    return {name: encoding(lengths.get(name, ())) for name in SPLITS}


def test_length_strata_by_hand():
    found = stratify(
        parts(train=[7, 3, 9, 4, 5, 8, 6], reward=[1, 5, 6, 100], test=[]), LengthScorer(), 3
    )
    # sorted: 3 4 5 | 6 7 | 8 9
    assert found["train"].tolist() == [1, 0, 2, 0, 0, 2, 1]
    assert found["reward"].tolist() == [0, 0, 1, 2]
    assert found["select"].tolist() == found["test"].tolist() == []


def test_length_is_measured_before_truncation():
    assert LengthScorer().score(encoding([50, 70, 60], cut=8)).tolist() == [50, 70, 60]


def test_fewer_rows_than_strata_leave_the_last_empty():
    found = stratify(parts(train=[4, 2], reward=[1, 3, 9]), LengthScorer(), 4)
    assert found["train"].tolist() == [1, 0]
    assert found["reward"].tolist() == [0, 1, 1]


def test_a_source_without_train_rows_takes_its_edges_from_its_held_out_rows():
    found = stratify(parts(reward=[1, 4], select=[2], test=[3]), LengthScorer(), 2)
    assert [found[name].tolist() for name in SPLITS] == [[], [0, 1], [0], [1]]


@given(scores=SCORES, strata=st.integers(1, 8))
def test_train_strata_are_equal_sorted_and_stable(scores, strata):
    groups = equal_groups(scores, strata)
    counts = np.bincount(groups, minlength=strata)
    assert counts.sum() == len(scores)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()
    order = np.lexsort((np.arange(len(scores)), scores))
    assert (np.diff(groups[order]) >= 0).all()


@given(train=SCORES.filter(len), held=SCORES, strata=st.integers(1, 6))
def test_held_out_rows_go_where_train_rows_of_their_score_are(train, held, strata):
    groups = equal_groups(train, strata)
    found = bin_rows(held, train, groups)
    for score, stratum in zip(held, found, strict=True):
        alike = groups[train == score]
        if len(alike):
            assert stratum in alike
        else:
            harder = groups[train > score]
            assert stratum == (harder.min() if len(harder) else groups.max())
    order = np.argsort(held, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


def test_ties_are_spread_in_the_proportions_of_the_train_rows():
    train = np.array([1.0] * 6 + [2.0] * 2)
    groups = equal_groups(train, 2)
    found = bin_rows(np.ones(9), train, groups)
    assert np.bincount(found).tolist() == [6, 3]


def test_numeric_columns_and_texts_that_read_as_numbers():
    rows = encoding([1] * 4, [10, 2.5, "9", True])
    assert scorer_for("column:level", [rows.raw], 4, "s").score(rows).tolist() == [10, 2.5, 9, 1]
    rows = encoding([1] * 2, ["10", "9"])
    assert scorer_for("column:level", [rows.raw], 4, "s").score(rows).tolist() == [10, 9]


def test_labels_are_strata_in_sorted_order():
    train = encoding([1] * 4, ["hard", "easy", "hard", "hard"])
    reward = encoding([1] * 2, ["medium", "easy"])
    split = {**parts(), "train": train, "reward": reward}
    scorer = scorer_for("column:level", [train.raw, reward.raw], 3, "s")
    found = stratify(split, scorer, 3)
    assert found["train"].tolist() == [1, 0, 1, 1]
    assert found["reward"].tolist() == [2, 0]
    assert (scorer.name, scorer.cost) == ("column:level", 0)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([1, None], "is missing or no scalar; give every row a finite number"),
        ([1, "x"], "holds 'x'; give every row a finite number"),
        ([1, float("nan")], "holds nan"),
        (["a", None], "give every row a label among 'a'"),
        (["a", 3], "holds 3; give every row a label among 'a'"),
    ],
)
def test_unusable_cells_are_placed(cells, reason):
    rows = encoding([1, 1], cells)
    with pytest.raises(SourceError, match=r"'s': a\.jsonl line 2: column 'level'") as caught:
        scorer_for("column:level", [rows.raw], 4, "s").score(rows)
    assert reason in str(caught.value)
    assert "set data.strata_by to length" in str(caught.value)


def test_too_many_labels_and_unknown_words():
    rows = encoding([1] * 3, ["a", "b", "c"])
    with pytest.raises(
        SourceError, match=r"3 labels .first: a.jsonl line 1, 'a'. for 2 strata; raise"
    ):
        scorer_for("column:level", [rows.raw], 2, "s")
    with pytest.raises(ConfigError, match=r"strata_by=lenght: unknown scorer; did you mean length"):
        scorer_for("lenght", [rows.raw], 2, "s")
    with pytest.raises(ConfigError, match=r"strata_by=ifd: a model grades, not the rows alone"):
        scorer_for("ifd", [rows.raw], 2, "s")


@given(
    cells=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=40),
    cap=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_the_cap_keeps_every_stratum_and_its_word(cells, cap, seed):
    supervised, strata = np.array(cells, dtype=np.int64).T
    kept = cap_rows(supervised, strata, cap, np.random.default_rng(seed))
    assert (np.diff(kept) > 0).all()
    assert set(strata[kept]) == set(strata)
    assert supervised[kept].sum() <= cap or len(kept) == len(set(strata))
    if supervised.sum() <= cap:
        assert len(kept) == len(supervised)
    again = cap_rows(supervised, strata, cap, np.random.default_rng(seed))
    np.testing.assert_array_equal(kept, again)


def test_the_hardest_of_the_remainder_are_dropped_or_kept():
    scores = np.arange(10.0)[::-1].copy()
    dropped = equal_groups(scores, 4, drop=True)
    assert np.bincount(dropped[dropped >= 0]).tolist() == [2, 2, 2, 2]
    assert scores[dropped < 0].tolist() == [9.0, 8.0]
    assert np.bincount(equal_groups(scores, 4)).tolist() == [3, 3, 2, 2]
    assert equal_groups(scores[:3], 4, drop=True).tolist() == [2, 1, 0]  # too few to drop any


@given(SCORES, st.integers(1, 6))
def test_dropping_takes_no_row_that_is_easier_than_one_that_stays(scores, strata):
    groups = equal_groups(scores, strata, drop=True)
    stays = groups >= 0
    if stays.any() and not stays.all():
        assert scores[~stays].min() >= scores[stays].max()
    counts = np.bincount(groups[stays], minlength=strata)
    assert len(scores) < strata or counts.max() == counts.min()


def test_held_out_rows_are_binned_by_the_rows_that_stay():
    found = stratify(parts(train=[1, 2, 3, 4, 9], reward=[9, 1]), LengthScorer(), 2, drop=True)
    assert found["train"].tolist() == [0, 0, 1, 1, -1]
    assert found["reward"].tolist() == [1, 0]


def test_a_plugin_grades_and_its_cost_is_counted(monkeypatch):
    monkeypatch.setitem(SCORERS._found, "lunar:odd", SCORERS._adopt("x", lambda r: r.lengths % 2))
    check_word("lunar:odd")
    rows = encoding([1, 2, 3, 5])
    scorer = scorer_for("lunar:odd", rows.raw, 2, "s")
    assert (scorer.score(rows).tolist(), scorer.cost, scorer.name) == ([1, 0, 1, 1], 0, "lunar:odd")
    dear = SCORERS._adopt("x", lambda r: r.lengths % 2, passes=2)
    monkeypatch.setitem(SCORERS._found, "lunar:dear", dear)
    both = plugin_scorers("lunar:dear", ["a", "b"])
    assert list(both) == ["a", "b"]
    assert both["a"].score(rows).tolist() == [1, 0, 1, 1]
    assert (both["a"].cost, both["b"].cost) == (2 * 11, 0)
    dry = plugin_scorers("lunar:dear", ["a"], dry=True)["a"]
    assert (dry.score(rows).tolist(), dry.cost) == ([1, 2, 3, 5], 22)
    assert plugin_scorers("length", ["a"]) == plugin_scorers("column:x", ["a"]) == {}


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda rows: rows.lengths[:1], r"gave an array \(1,\) for 3 rows"),
        (lambda rows: [1.0, np.nan, 2.0], r"a\.jsonl line 2: scorer lunar:bad gave nan"),
    ],
)
def test_wrong_grades_of_a_plugin_are_placed(monkeypatch, score, sentence):
    monkeypatch.setitem(SCORERS._found, "lunar:bad", SCORERS._adopt("x", score))
    rows = encoding([1, 2, 3])
    with pytest.raises(SourceError, match=sentence):
        scorer_for("lunar:bad", rows.raw, 2, "s").score(rows)
