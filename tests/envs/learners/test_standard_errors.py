"""Standard errors of held-out losses: by hand, against other ways to find them, and their parts."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.standard_errors import row_moments, standard_error
from mixgym.envs.sources.source import Source

ONE = (1, 1)


def moments_of(rows: list[list[float]], cell: int = 0, shape: tuple[int, int] = ONE) -> np.ndarray:
    """Of rows, each the NLL of its tokens."""
    numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    losses = np.concatenate([np.zeros(0), *map(np.asarray, rows)])
    return row_moments(losses, numbers, np.full(len(losses), cell), shape)


def written_out(rows: list[list[float]]) -> float:
    """The formula as it stands in the docstring, row by row."""
    total, count = sum(map(sum, rows)), sum(map(len, rows))
    squares = sum((sum(row) - total / count * len(row)) ** 2 for row in rows)
    return math.sqrt(len(rows) / (len(rows) - 1) * squares) / count


def test_by_hand() -> None:
    """Rows of 2, 1 and 1 tokens with losses 2, 3 and 1: L = 6 / 4, deviations -1, 1.5, -0.5."""
    rows = [[0.5, 1.5], [3.0], [1.0]]
    assert moments_of(rows)[:, 0, 0].tolist() == [3, 6, 4, 14, 8, 6]
    wanted = math.sqrt(3 / 2 * (1 + 2.25 + 0.25)) / 4
    assert standard_error(moments_of(rows))[0, 0] == pytest.approx(wanted)


def test_rows_of_one_token_give_the_error_of_a_mean() -> None:
    losses = np.random.default_rng(0).exponential(1.0, 50)
    found = standard_error(moments_of([[loss] for loss in losses.tolist()]))
    assert found[0, 0] == pytest.approx(losses.std(ddof=1) / math.sqrt(50))


def test_tokens_of_a_row_count_as_one() -> None:
    """Rows that are equal in all their tokens: ten times the tokens tell nothing new."""
    losses = [1.0, 2.0, 4.0, 1.5]
    one, ten = ([[loss] * n for loss in losses] for n in (1, 10))
    assert standard_error(moments_of(ten)) == pytest.approx(standard_error(moments_of(one)))


def test_unknown_with_fewer_than_two_rows_and_zero_where_rows_agree() -> None:
    assert np.isnan(standard_error(moments_of([])))
    assert np.isnan(standard_error(moments_of([[1.0, 2.0]])))
    assert standard_error(moments_of([[1.3, 1.3], [1.3], [1.3] * 7])) == pytest.approx(
        0.0, abs=1e-7
    )


ROWS = st.lists(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=6), min_size=2, max_size=12)


@settings(max_examples=60)
@given(ROWS, st.integers(0, 12))
def test_sums_are_the_formula_and_add_up_over_parts(rows: list[list[float]], cut: int) -> None:
    whole = moments_of(rows)
    assert standard_error(whole)[0, 0] == pytest.approx(written_out(rows), rel=1e-6, abs=1e-5)
    parts = moments_of(rows[:cut]) + moments_of(rows[cut:])
    assert parts == pytest.approx(whole)


def test_it_is_what_a_bootstrap_over_rows_finds() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 30, 300)
    own = rng.gamma(4.0, 0.5, 300)  # rows differ
    rows = [rng.exponential(mean, n).tolist() for mean, n in zip(own, tokens, strict=True)]
    losses = np.array([sum(row) for row in rows])
    drawn = rng.integers(0, 300, (4000, 300))
    again = losses[drawn].sum(1) / tokens[drawn].sum(1)
    found = standard_error(moments_of(rows))[0, 0]
    assert found == pytest.approx(again.std(), rel=0.05)
    flat = np.concatenate([np.array(row) for row in rows])
    assert found > 1.5 * flat.std() / math.sqrt(len(flat)), "tokens of a row are not independent"


def test_an_evaluation_knows_its_errors(
    make_learner: Callable[..., CausalLM], sources: tuple[Source, ...]
) -> None:
    learner = make_learner()
    found, language = learner.evaluate("reward"), learner.trained.language
    rows: dict[tuple[int, int], list[list[float]]] = {}
    for batch in learner.held_out.batches("reward", language):
        (losses,) = language.measured([batch])
        for document in range(len(batch.document_lengths)):
            mine = batch.documents == document
            cell = divmod(int(batch.cells[mine][0]), 2)
            rows.setdefault(cell, []).append(losses[mine].tolist())
    assert found.rows.tolist() == [[4, 3], [7, 0]]
    assert found.rows.sum() == sum(len(source.splits["reward"]) for source in sources)
    for cell, own in rows.items():
        assert found.error[cell] == pytest.approx(written_out(own))
    assert found.source_error[0] == pytest.approx(written_out(rows[0, 0] + rows[0, 1]))
    assert found.source_error[1] == pytest.approx(found.error[1, 0])
    assert np.isnan(found.error[1, 1])
    assert np.isnan(learner.evaluate("test").source_error).all(), "no rows"


def test_documents_of_a_batch_are_its_rows(
    make_learner: Callable[..., CausalLM], sources: tuple[Source, ...]
) -> None:
    learner = make_learner()
    seen = []
    for batch in learner.held_out.batches("reward", learner.trained.language):
        counts = np.bincount(batch.documents, minlength=len(batch.document_lengths))
        seen += list(zip(batch.document_lengths, counts.tolist(), strict=True))
    wanted = [
        (int(length), int(supervised))
        for source in sources
        for length, supervised in zip(
            source.splits["reward"].lengths, source.splits["reward"].supervised, strict=True
        )
    ]
    assert sorted(seen) == sorted(wanted)
