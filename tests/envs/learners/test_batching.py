from collections.abc import Callable

import numpy as np
import pytest
import torch

from mixgym.envs.errors import PackingError
from mixgym.envs.interval_plan import Pack
from mixgym.envs.learners.batching import evaluation_packs, make_batch
from mixgym.envs.sources.source import EncodedRows, Source

PackMaker = Callable[..., Pack]


def splits_of(sources: tuple[Source, ...], split: str = "train") -> list[EncodedRows]:
    return [source.splits[split] for source in sources]


def test_rows_lie_end_to_end() -> None:
    """Worked by hand: two rows, (5 6 7) with 7 supervised and (8 9) with 9 supervised."""
    rows = EncodedRows.from_lists(
        [
            (np.array([5, 6, 7], np.int32), np.array([False, False, True])),
            (np.array([8, 9], np.int32), np.array([False, True])),
        ]
    )
    packs = [
        Pack(np.array([[0, 1, 0]]), np.array([3]), 4, weight=2.0),
        Pack(np.array([[0, 0, 1]]), np.array([2]), 4),
    ]
    batch = make_batch(packs, [rows], 2, "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.document_lengths == (3, 2)
    assert batch.predictors.tolist() == [1, 3]
    assert batch.labels.tolist() == [7, 9]
    assert batch.weights.tolist() == [2.0, 1.0]
    assert batch.cells.tolist() == [1, 0]
    assert batch.tokens == 5
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_a_predictor_is_in_the_document_of_its_label(
    sources: tuple[Source, ...], make_pack: PackMaker
) -> None:
    packs = [make_pack([(0, 3), (1, 2)]), make_pack([(1, 9)]), make_pack([(0, 0), (0, 1), (1, 1)])]
    batch = make_batch(packs, splits_of(sources), 2, "cpu")
    document = np.repeat(np.arange(6), batch.document_lengths)
    predictors = batch.predictors.numpy()
    assert np.array_equal(document[predictors], document[predictors + 1])
    assert torch.equal(batch.labels, batch.input_ids[0, batch.predictors + 1])


def test_only_supervised_tokens_are_labels(
    sources: tuple[Source, ...], make_pack: PackMaker
) -> None:
    batch = make_batch([make_pack([(0, 4), (1, 5)])], splits_of(sources), 2, "cpu")
    wanted = [sources[0].splits["train"].row(4), sources[1].splits["train"].row(5)]
    assert batch.labels.tolist() == np.concatenate([t[m] for t, m in wanted]).tolist()
    counts = np.bincount(batch.cells, minlength=4)
    assert counts.tolist() == [wanted[0][1].sum(), 0, 0, wanted[1][1].sum()]


def test_a_batch_does_not_change_the_rows(
    sources: tuple[Source, ...], make_pack: PackMaker
) -> None:
    before = sources[0].splits["train"].tokens.copy()
    batch = make_batch([make_pack([(0, 0)])], splits_of(sources), 2, "cpu")
    batch.input_ids.zero_()
    assert np.array_equal(sources[0].splits["train"].tokens, before)


def test_evaluation_reads_every_row_once(sources: tuple[Source, ...]) -> None:
    packs = evaluation_packs(sources, "reward", 32)
    seen = np.concatenate([pack.rows for pack in packs])
    assert len(seen) == 14
    assert {(k, i) for k, _, i in seen.tolist()} == {(k, i) for k in (0, 1) for i in range(7)}
    for k, g, i in seen.tolist():
        assert sources[k].strata["reward"][i] == g
    assert all(pack.tokens <= 32 for pack in packs)
    for pack in packs:
        lengths = [sources[k].splits["reward"].lengths[i] for k, _, i in pack.rows.tolist()]
        assert pack.lengths.tolist() == lengths


def test_an_empty_split_has_no_packs(sources: tuple[Source, ...]) -> None:
    assert evaluation_packs(sources, "test", 32) == []


def test_a_row_that_does_not_fit_is_refused(sources: tuple[Source, ...]) -> None:
    with pytest.raises(PackingError, match="a pack holds 4"):
        evaluation_packs(sources, "reward", 4)
