"""Rows graded by a model: against plain losses, under a cap, from a cache."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixgym.envs.build import load_corpus
from mixgym.envs.errors import ConfigError, SourceError
from mixgym.envs.learners.models.language_model import LanguageModel
from mixgym.envs.learners.probes import difficulty_scorers as grading
from mixgym.envs.learners.probes.difficulty_scorers import (
    Grader,
    ModelScorer,
    make_grader,
    score_of,
    spread,
)
from mixgym.envs.options import DataOptions, ModelOptions, WorldOptions
from mixgym.envs.sources.encoding import Encoding
from mixgym.envs.sources.reading import Row
from mixgym.envs.sources.source import EncodedRows

from ..conftest import VOCABULARY, encoded, tiny_model


def rows_of(lengths: list[int], seed: int = 0) -> Encoding:
    rows = encoded(np.random.default_rng(seed), lengths)
    raw = tuple(Row((), "x", {}, "a.jsonl", i) for i in range(1, len(lengths) + 1))
    return Encoding(rows, raw, np.array(lengths, np.int64), Counter())


def scorer(
    tmp_path: Path, kind: str = "loss", model: Any = None, attention: str = "sdpa", **data: Any
) -> ModelScorer:
    options = DataOptions(strata_by=kind, score_cache=str(tmp_path), **data)
    grader = Grader(ModelOptions(name="tiny"), options, tokenizer=None, own=True)
    module = (tiny_model("llama") if model is None else model).eval()
    own = ModelOptions(attention=attention)
    grader.language = LanguageModel(module, own, torch.device("cpu"), 32)
    return ModelScorer(grader, "source", seed=0)


def plain_loss(model: Any, tokens: Any, labels: Any) -> float:
    ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    every = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
    return float(every[np.asarray(labels, np.bool_)[1:]].mean())


def test_the_two_forms_of_ifd_order_rows_differently() -> None:
    given_prompt, alone = np.log([4.0, 1.2]), np.log([8.0, 2.2])
    ratio, losses = (score_of(kind, given_prompt, alone) for kind in ("ifd", "ifd_loss"))
    assert ratio == pytest.approx([0.5, 0.545455], abs=1e-6)
    assert losses == pytest.approx([0.666667, 0.231238], abs=1e-6)
    assert score_of("loss", given_prompt, None) is given_prompt


@pytest.mark.parametrize("kind", ["loss", "ifd", "ifd_loss"])
@pytest.mark.parametrize("attention", ["sdpa", "documents"])
def test_grades_are_those_of_rows_alone(kind: str, attention: str, tmp_path: Path) -> None:
    rows = rows_of([9, 5, 14, 5, 20])
    grader = scorer(tmp_path, kind, attention=attention)
    found = grader.score(rows)
    plain, expected, read = tiny_model("llama").eval(), [], 0
    for i in range(5):
        tokens, labels = rows.rows.row(i)
        first = labels.tolist().index(True)
        given_prompt = plain_loss(plain, tokens, labels)
        bare = tokens[first - 1 :]
        alone = plain_loss(plain, bare, [False] + [True] * (len(bare) - 1))
        read += len(tokens) + (len(bare) if kind != "loss" else 0)
        forms = {"loss": given_prompt, "ifd": np.exp(given_prompt) / np.exp(alone)}
        expected.append(forms.get(kind, given_prompt / alone))
    assert found == pytest.approx(expected, rel=1e-4)
    assert grader.cost == read


def test_grades_come_from_the_cache_by_content(tmp_path: Path, monkeypatch: Any) -> None:
    rows, passes = rows_of([9, 5, 14]), []
    real = Grader._measure
    monkeypatch.setattr(Grader, "_measure", lambda *a: passes.append(1) or real(*a))

    def grade(rows: Encoding, **changes: Any) -> tuple[list[float], int]:
        passes.clear()
        return scorer(tmp_path, **changes).score(rows).tolist(), len(passes)

    first, count = grade(rows)
    assert count > 0
    assert grade(rows) == (first, 0)
    assert grade(rows, kind="ifd")[1] > 0  # the completions alone are new
    assert grade(rows, kind="ifd_loss")[1] == 0
    assert grade(rows_of([9, 5, 14], seed=1))[1] > 0
    other = tiny_model("llama")
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1e-3
    assert grade(rows, model=other)[1] > 0
    assert not list(tmp_path.glob("*.tmp"))
    for path in tmp_path.glob("*.npy"):  # a broken file is measured again, and mended
        path.write_bytes(path.read_bytes()[:-3])
    assert grade(rows) == (first, count)
    assert grade(rows) == (first, 0)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(grading.np, "save", full)
    with pytest.raises(OSError, match="disk full"):
        scorer(tmp_path).score(rows_of([5, 6]))
    assert not list(tmp_path.iterdir())


def test_at_most_so_many_rows_are_graded(tmp_path: Path) -> None:
    rows = rows_of(np.random.default_rng(1).integers(4, 30, 60).tolist())
    graded = scorer(tmp_path, score_rows=16)
    found, whole = graded.score(rows), scorer(tmp_path).score(rows)
    exact = np.flatnonzero(found == whole)
    assert len(exact) >= 16
    assert set(found.tolist()) <= set(whole[exact].tolist())
    assert graded.score(rows).tolist() == found.tolist()
    counted = scorer(tmp_path, score_rows=16)
    counted.grader.dry = True
    assert counted.score(rows).tolist() == rows.lengths.tolist()
    assert counted.cost * 2 == graded.cost  # it was asked twice


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 40))
def test_others_take_scores_of_rows_of_their_length(seed: int, m: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 30, m + more)
    graded = np.sort(rng.permutation(m + more)[:m])
    scores = lengths[graded] + 0.25  # the score says the length
    whole = spread(scores, graded, lengths, rng)
    assert whole[graded].tolist() == scores.tolist()
    for i in np.setdiff1d(np.arange(m + more), graded):
        low, high = sorted((whole[i] - 0.25, float(lengths[i])))
        between = (lengths[graded] > low) & (lengths[graded] < high)
        assert between.sum() < grading.NEIGHBOURS
    if m == 1:
        assert (whole == scores[0]).all()


def test_what_cannot_be_graded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.1m starts from random weights and cannot grade"):
        make_grader(WorldOptions(data={"strata_by": "ifd"}), None)
    assert make_grader(WorldOptions(), None) is None
    pair = (np.array([1, 2, 3], np.int32), np.array([False, True, True]))
    bare = rows_of([3])
    text = Encoding(EncodedRows.from_lists([pair]), bare.raw, bare.lengths, Counter())
    with pytest.raises(SourceError, match=r"no row has a prompt, and data\.strata_by=ifd compares"):
        scorer(tmp_path, "ifd").score(text)
    broken = scorer(tmp_path)
    with torch.no_grad():
        broken.grader.language.module.lm_head.weight[:] = np.nan
    with pytest.raises(SourceError, match=r"a.jsonl.*1: the loss is nan: is the grading model"):
        broken.score(rows_of([5, 6]))


def test_no_rows_have_no_grades(tmp_path: Path) -> None:
    assert scorer(tmp_path).score(rows_of([])).tolist() == []


def saved_model(folder: Path, rows: list[str]) -> Path:
    """A tiny model with a tokenizer of its own, in a folder."""
    from mixgym.envs.learners.models.small_models import build_tokenizer

    tokenizer = build_tokenizer(iter(rows), 512)
    tiny_model("llama", vocab_size=512, max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scorer", ["the model itself", "another one"])
def test_strata_of_a_configuration_follow_the_grades(scorer: str, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model", ["1 2 3 4 + - sort reverse", "a b c d e f g"])
    data = {"strata_by": "loss", "strata": 3, "score_cache": str(tmp_path / "cache")}
    options = WorldOptions(
        sources={"a": {"embedded": "addition", "rows": 60}},
        data={
            **data,
            "max_length": 64,
            **({"scorer": str(folder)} if scorer != "the model itself" else {}),
        },
        model={"name": str(folder) if scorer == "the model itself" else "0.1m"},
    )
    dry = load_corpus(options, dry=True)
    assert not (tmp_path / "cache").exists()
    corpus = load_corpus(options)
    assert dry.graded == corpus.graded > 0
    (source,) = corpus.sources
    counts = np.bincount(source.strata["train"])
    assert len(counts) == 3
    assert counts.max() - counts.min() <= 1
    if scorer == "the model itself":
        grader = make_grader(options, corpus.tokenizer)
        assert grader is not None
        losses = grader.losses(source.splits["train"])
        highest = [losses[source.strata["train"] == g].max() for g in range(3)]
        lowest = [losses[source.strata["train"] == g].min() for g in range(3)]
        assert highest[0] <= lowest[1] <= highest[1] <= lowest[2]


def test_the_vocabulary_of_the_rows_is_that_of_the_tiny_model() -> None:
    assert int(rows_of([20, 20]).rows.tokens.max()) < VOCABULARY
