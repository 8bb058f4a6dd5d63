"""Large sources: read and encoded once, in several processes, the same as without a cache."""

import json

import numpy as np
import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.options import DataOptions, SourceOptions, WorldOptions
from mixgym.envs.sources.cached import keys
from mixgym.envs.sources.encoded import workers
from mixgym.envs.sources.encoding import Encoder
from mixgym.envs.sources.loading import encode_sources, read_sources
from mixgym.envs.sources.tables import records, table


def some_rows(count):
    return [
        {"prompt": f"say {i}", "completion": "x" * (1 + i % 7), "level": i % 5, "id": i}
        for i in range(count)
    ]


@pytest.fixture
def small(monkeypatch):
    """Sources of any size are kept."""
    monkeypatch.setattr(keys, "LEAST_BYTES", 0)


class Counted:
    """Counts calls of a method."""

    def __init__(self, monkeypatch, where, name):
        self.calls = 0
        method = getattr(where, name)

        def counted(*arguments):
            self.calls += 1
            return method(*arguments)

        monkeypatch.setattr(where, name, counted)


def load(path, tokenizer, cache, seed=0, source=None, **data):
    options = WorldOptions(
        seed=seed,
        sources={"s": SourceOptions(path=str(path), **(source or {}))},
        data=DataOptions(cache=None if cache is None else str(cache), held_out_rows=4, **data),
    )
    return encode_sources(read_sources(options), tokenizer, options.data, seed)[0]


def same(one, other):
    assert one.report == other.report
    for split, rows in one.splits.items():
        np.testing.assert_array_equal(one.strata[split], other.strata[split])
        for name in ("tokens", "labels", "offsets", "supervised", "digests"):
            np.testing.assert_array_equal(
                getattr(rows, name), getattr(other.splits[split], name), name
            )


OPTIONS = [
    {},
    {"strata_by": "column:level", "strata": 5},
    {"max_length": 36, "over_long": "skip", "duplicates": "drop"},
    {"max_length": 24, "labels": "all", "held_out_tokens": 30},
]


@pytest.mark.parametrize("data", OPTIONS)
def test_a_second_start_gives_the_same_and_reads_nothing(
    small, write, tmp_path, monkeypatch, bytes_tokenizer, data
):
    rows = some_rows(200)
    path = write(
        "a.jsonl", [*rows, {"prompt": "p" * 40, "completion": "c" * 9, "level": 1}, rows[3]]
    )
    fresh = load(path, bytes_tokenizer, None, **data)
    same(load(path, bytes_tokenizer, tmp_path / "cache", **data), fresh)
    picked = Counted(monkeypatch, records.JsonLines, "pick")
    encoded = Counted(monkeypatch, Encoder, "encode")
    same(load(path, bytes_tokenizer, tmp_path / "cache", **data), fresh)
    assert (picked.calls, encoded.calls) == (0, 0)


def test_another_seed_finds_the_same_rows(small, write, tmp_path, monkeypatch, bytes_tokenizer):
    path = write("a.jsonl", some_rows(100))
    load(path, bytes_tokenizer, tmp_path / "cache", seed=0)
    encoded = Counted(monkeypatch, Encoder, "encode")
    same(load(path, bytes_tokenizer, tmp_path / "cache", 1), load(path, bytes_tokenizer, None, 1))
    assert encoded.calls == 1  # without the cache


def test_whatever_matters_is_looked_at(
    small, write, tmp_path, monkeypatch, bytes_tokenizer, plain_tokenizer, chat_tokenizer
):
    cache = tmp_path / "cache"
    path = write("a.jsonl", some_rows(60))
    load(path, bytes_tokenizer, cache)
    encoded = Counted(monkeypatch, Encoder, "encode")
    times = []
    for tokenizer, data in [
        (bytes_tokenizer, {}),
        (plain_tokenizer, {}),
        (chat_tokenizer, {}),
        (chat_tokenizer, {"template": "plain"}),
        (bytes_tokenizer, {"max_length": 16}),
        (bytes_tokenizer, {"labels": "all"}),
        (bytes_tokenizer, {"over_long": "skip"}),
        (bytes_tokenizer, {"malformed": "skip"}),
    ]:
        before = encoded.calls
        load(path, tokenizer, cache, **data)
        times.append(encoded.calls - before)
    assert times == [0, 1, 1, 1, 1, 1, 1, 1]
    moved = path.rename(tmp_path / "b.jsonl")
    before = encoded.calls
    assert load(moved, bytes_tokenizer, cache).report.origin == str(moved)
    assert encoded.calls == before  # the content counts, and not where it lies
    moved.write_text(moved.read_text().replace("say 7", "say 8"))
    load(moved, bytes_tokenizer, cache)
    assert encoded.calls == before + 1


def test_a_damaged_cache_is_made_anew(small, write, tmp_path, bytes_tokenizer):
    path = write("a.jsonl", some_rows(50))
    fresh = load(path, bytes_tokenizer, None)
    same(load(path, bytes_tokenizer, tmp_path / "cache"), fresh)
    for entry in (tmp_path / "cache" / "rows").iterdir():
        if entry.name.startswith("encoded-"):
            data = bytearray((entry / "tokens.bin").read_bytes())
            data[5] ^= 64
            (entry / "tokens.bin").write_bytes(data)
        elif entry.name.startswith("read-"):
            (entry / "train-records.bin").unlink()
    same(load(path, bytes_tokenizer, tmp_path / "cache"), fresh)


def test_errors_are_the_same_with_a_cache(small, write, tmp_path, bytes_tokenizer):
    rows = some_rows(30)
    path = write("a.jsonl", [*rows, {"prompt": "p" * 50, "completion": "c"}])
    for _ in range(2):
        with pytest.raises(SourceError, match=f"{path} line 31 has 70 tokens, more than"):
            load(path, bytes_tokenizer, tmp_path / "cache", over_long="error", max_length=40)
    twin = write("t.jsonl", rows[4:5])
    load(path, bytes_tokenizer, tmp_path / "cache", source={"test": str(twin)})
    with pytest.raises(SourceError, match=f"train row {path} line 5 stands again in test, {twin}"):
        load(
            path,
            bytes_tokenizer,
            tmp_path / "cache",
            source={"test": str(twin)},
            duplicates="error",
        )


# --- several processes ---


@pytest.fixture
def shared(monkeypatch):
    """A share for two processes in a few rows."""
    monkeypatch.setattr(workers, "LEAST_ROWS", 10)
    monkeypatch.setattr("mixgym.envs.sources.encoded.splits.LEAST_ROWS", 10)


def test_two_processes_give_what_one_gives(
    small, shared, write, tmp_path, monkeypatch, bytes_tokenizer
):
    path = write("a.jsonl", some_rows(40))
    one = load(path, bytes_tokenizer, tmp_path / "one", processes=1)
    same(load(path, bytes_tokenizer, tmp_path / "two", processes=2), one)
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")  # too dear to start twice
    same(load(path, bytes_tokenizer, None, processes=2), one)


@pytest.mark.slow
def test_a_helper_s_refusal_is_ours(small, shared, write, tmp_path, bytes_tokenizer):
    path = write("a.jsonl", [*some_rows(40), {"prompt": "p" * 50, "completion": "c"}])
    with pytest.raises(SourceError, match=f"source 's': {path} line 41 has"):
        load(path, bytes_tokenizer, tmp_path / "c", over_long="error", max_length=40, processes=2)


def test_a_helper_that_dies_leaves_its_share(
    small, shared, write, tmp_path, monkeypatch, bytes_tokenizer
):
    path = write("a.jsonl", some_rows(40))
    one = load(path, bytes_tokenizer, None, processes=1)
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    same(load(path, bytes_tokenizer, tmp_path / "c", processes=2), one)


def test_processes_are_as_many_as_there_is_work_for(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [workers.processes_for(n, None) for n in (10, 30_000, 10**6)] == [1, 3, 8]
    assert workers.processes_for(10**6, 2) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers.processes_for(10**6, None) == 2


def test_rows_are_parsed_only_where_they_are_asked_for(small, write, tmp_path, monkeypatch):
    path = write("a.jsonl", some_rows(1000))
    options = WorldOptions(
        sources={"s": SourceOptions(path=str(path))}, data=DataOptions(cache=str(tmp_path / "c"))
    )
    first = read_sources(options)[0]
    parsed = Counted(monkeypatch, table, "parse")
    again = read_sources(options)[0]
    assert parsed.calls == 0
    assert again.rows["train"][500] == first.rows["train"][500]
    assert json.loads(path.read_text().splitlines()[again.rows["train"][3].line - 1])["id"] >= 3
    assert parsed.calls <= 3


PLUGIN = """
from mixgym.envs.sources.rows.formats import Parsed, RowFormat

def parse(row, names):
    return Parsed(((("user", row["ask"]), ("assistant", row["reply"]{more}))), None)

FORM = RowFormat((("ask",), ("reply",)), parse)
"""


def test_what_others_make_of_rows_is_not_kept(small, tmp_path, write, monkeypatch, bytes_tokenizer):
    """It may change while the files do not."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write("a.jsonl", [{"ask": f"q{i}", "reply": f"a{i}"} for i in range(40)])
    encoded = Counted(monkeypatch, Encoder, "encode")
    for number, more, calls in ((1, "", 1), (1, "", 2), (2, " + '!'", 3)):
        (tmp_path / f"own_format{number}.py").write_text(PLUGIN.format(more=more))
        word = {"format": f"own_format{number}:FORM"}
        source = load(path, bytes_tokenizer, tmp_path / "cache", source=word)
        assert source.report.row_format == word["format"]
        assert encoded.calls == calls
    text = bytes_tokenizer.decode(source.splits["train"].row(0)[0])
    assert text.endswith("!<eos>")
