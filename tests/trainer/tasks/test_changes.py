"""Shuffled answers are shuffled, repeated rows few, long prompts the old ones behind others."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.sources.rows.row import Row
from mixgym.trainer.tasks.changes import lengthen_prompts, repeat, shuffle_answers, take


def rows(answers: list[str]) -> list[Row]:
    return [
        Row((("user", f"q{i}"), ("assistant", answer)), None, {}, "f", i)
        for i, answer in enumerate(answers)
    ]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 99))
def test_nobody_keeps_his_answer(answers: list[str], seed: int) -> None:
    before = rows(answers)
    after = shuffle_answers(before, rng(seed))
    own = {row.messages[0]: row.messages[1] for row in before}
    assert all(row.messages[1] != own[row.messages[0]] for row in after)
    most = Counter(answers).most_common(1)[0][1]
    if 2 * most <= len(answers):  # then a shuffle without fixed points exists
        assert sorted(row.messages[1][1] for row in after) == sorted(answers)
    else:  # as many as can: the most frequent answer goes to all others, and theirs to its rows
        assert len(after) == 2 * (len(answers) - most)


def test_answers_of_different_rows_are_permuted_at_random() -> None:
    before = rows([str(i) for i in range(20)])
    shuffled = [
        tuple(row.messages[1][1] for row in shuffle_answers(before, rng(s))) for s in (0, 1)
    ]
    assert shuffled[0] != shuffled[1]
    assert {*shuffled[0]} == {str(i) for i in range(20)}
    talk = [
        Row(
            (("user", q), ("assistant", "first"), ("user", "and"), ("assistant", a)),
            None,
            {},
            "f",
            1,
        )
        for q, a in (("x", "1"), ("y", "2"))
    ]
    for row, answer in zip(shuffle_answers(talk, rng()), "21", strict=True):
        assert row.messages[1][1] == "first", "earlier turns stay"
        assert row.messages[3][1] == answer


def test_few_rows_are_repeated_evenly() -> None:
    found = repeat(rows([str(i) for i in range(50)]), 4, 10, rng())
    counts = Counter(row.content for row in found)
    assert sorted(counts.values()) == [2, 2, 3, 3]
    twins = [rows(["same"])[0]] * 9
    assert len({row.content for row in repeat(twins, 4, 10, rng())}) == 1


def test_rows_are_taken_in_their_order() -> None:
    found = take(rows([str(i) for i in range(50)]), 7, rng())
    lines = [row.line for row in found]
    assert len(lines) == 7
    assert lines == sorted({*lines})


def test_prompts_grow_by_texts_of_the_donor() -> None:
    before = rows(["1", "2", "3"])
    donors = [Row((), "d" * 90, {}, "g", 1)]
    for old, new in zip(before, lengthen_prompts(before, donors, 200, rng()), strict=True):
        prompt = new.messages[0][1]
        context, _, own = prompt.rpartition("\n\n")
        assert own == old.messages[0][1]
        assert new.messages[1:] == old.messages[1:]
        assert len(context) == 200
        assert {*context} == {"d", "\n"}
    silent = [Row((("assistant", "hello"),), None, {}, "f", 1)]
    assert lengthen_prompts(silent, donors, 50, rng()) == tuple(silent)
