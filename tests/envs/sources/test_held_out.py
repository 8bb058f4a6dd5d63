"""Held-out rows: as many as measuring needs; the rest is trained on, and nothing leaks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.options import SPLITS, WorldOptions
from mixgym.envs.sources.difficulty import cap_rows
from mixgym.envs.sources.loading import encode_sources, read_sources
from mixgym.envs.sources.source import warnings_of

HELD = SPLITS[1:]


def rows(count, size=10, start=0, word="say"):
    return [
        {"prompt": f"{word} {i}", "completion": "x" * size} for i in range(start, start + count)
    ]


def load(sources, tokenizer, halve=False, seed=0, **data):
    options = WorldOptions.model_validate({"seed": seed, "sources": sources, "data": data})
    raw = read_sources(options)
    return raw, encode_sources(raw, tokenizer, options.data, seed, halve=halve)


def texts(source, tokenizer):
    return {
        name: [tokenizer.decode(part.row(i)[0]) for i in range(len(part))]
        for name, part in source.splits.items()
    }


def test_least_rows_are_kept_over_the_cap_of_tokens():
    tokens, strata = np.full(200, 50), np.zeros(200, np.int64)

    def kept(cap, least):
        return len(cap_rows(tokens, strata, cap, np.random.default_rng(0), least))

    assert kept(2000, 1) == 40
    assert kept(2000, 64) == 64
    assert kept(5000, 64) == 100
    assert kept(2000, 500) == 200
    few = cap_rows(tokens[:10], strata[:10], 100, np.random.default_rng(0), 64)
    assert few.tolist() == list(range(10))


def test_what_measuring_does_not_need_is_trained_on(write, bytes_tokenizer):
    path = str(write("a.jsonl", rows(4000)))  # 200 rows of 11 tokens for each held-out split
    raw, (source,) = load({"s": {"path": path}}, bytes_tokenizer, held_out_tokens=990)
    assert [len(raw[0].rows[name]) for name in SPLITS] == [3400, 200, 200, 200]
    assert [len(source.splits[name]) for name in SPLITS] == [3730, 90, 90, 90]
    assert source.report.counts == {"rows read": 4000, "rows given back to train": 330}
    found = texts(source, bytes_tokenizer)
    every = [text for part in found.values() for text in part]
    assert len(every) == len(set(every)) == 4000
    counts = np.bincount(source.strata["train"])
    assert counts.max() - counts.min() <= 1


def test_few_long_rows_are_no_measure(write, bytes_tokenizer):
    path = str(write("a.jsonl", rows(4000, size=99)))
    _, (source,) = load({"s": {"path": path}}, bytes_tokenizer, held_out_tokens=1000)
    assert [len(source.splits[name]) for name in HELD] == [64, 64, 64]
    _, (source,) = load(
        {"s": {"path": path}}, bytes_tokenizer, held_out_tokens=1000, held_out_rows=5
    )
    assert [len(source.splits[name]) for name in HELD] == [10, 10, 10]


def test_the_seed_alone_decides(write, bytes_tokenizer):
    path = str(write("a.jsonl", rows(2000)))
    loads = [
        texts(load({"s": {"path": path}}, bytes_tokenizer, seed=s, held_out_tokens=200)[1][0],
              bytes_tokenizer)
        for s in (1, 1, 2)
    ]  # fmt: skip
    assert loads[0] == loads[1]
    assert loads[0]["test"] != loads[2]["test"]


def test_rows_of_held_out_files_are_set_aside_and_never_trained_on(write, bytes_tokenizer):
    write("d/train.jsonl", rows(100))
    write("d/valid.jsonl", rows(400, start=1000))
    folder = str(write("d/test.jsonl", rows(200, start=5000)).parent)
    _, (source,) = load({"s": {"path": folder}}, bytes_tokenizer, held_out_tokens=100)
    assert [len(source.splits[name]) for name in SPLITS] == [100, 64, 64, 64]
    assert source.report.counts == {
        "rows read": 700,
        "rows set aside: reward over held_out_tokens": 136,
        "rows set aside: select over held_out_tokens": 136,
        "rows set aside: test over held_out_tokens": 136,
    }


def test_splits_that_judge_may_be_larger_than_the_one_that_pays(write, bytes_tokenizer):
    write("d/train.jsonl", rows(100))
    write("d/valid.jsonl", rows(400, start=1000))
    folder = str(write("d/test.jsonl", rows(200, start=5000)).parent)
    least = {"held_out_tokens": 110, "held_out_rows": 1}  # 11 supervised tokens in a row
    _, (small,) = load({"s": {"path": folder}}, bytes_tokenizer, **least)
    _, (source,) = load({"s": {"path": folder}}, bytes_tokenizer, **least, judged_tokens=1100)
    assert [len(small.splits[name]) for name in HELD] == [10, 10, 10]
    assert [len(source.splits[name]) for name in HELD] == [10, 100, 100]
    assert texts(small, bytes_tokenizer)["reward"] == texts(source, bytes_tokenizer)["reward"]


def test_targets_only_have_nothing_to_give_back_to(write, bytes_tokenizer):
    path = str(write("a.jsonl", rows(300)))
    pool = str(write("b.jsonl", rows(50, word="b")))
    sources = {"s": {"path": path, "train": False}, "pool": {"path": pool, "target": 0}}
    _, (source, _) = load(sources, bytes_tokenizer, held_out_tokens=100)
    assert [len(source.splits[name]) for name in SPLITS] == [0, 64, 64, 64]
    assert sum(n for k, n in source.report.counts.items() if "set aside" in k) == 108


@pytest.mark.parametrize("policy", ["report", "drop"])
def test_no_row_is_given_back_whose_twin_is_measured(write, bytes_tokenizer, policy):
    path = str(write("a.jsonl", rows(900) * 2 + rows(900, start=900)))
    other = str(write("b.jsonl", rows(1500, start=300)))
    sources = {"a": {"path": path}, "b": {"path": other}}
    raw, found = load(
        sources, bytes_tokenizer, duplicates=policy, held_out_tokens=50, held_out_rows=8
    )
    measured = {
        text for source in found for name in HELD for text in texts(source, bytes_tokenizer)[name]
    }
    before = {
        f"User: {row.messages[0][1]}\nAssistant:\n{row.messages[1][1]}<eos>"
        for source in raw
        for row in source.rows["train"]
    }
    for source in found:
        trained = set(texts(source, bytes_tokenizer)["train"])
        assert not (trained - before) & measured
        assert policy == "report" or not trained & measured
        assert source.report.counts["rows given back to train"] > 0


def test_a_validation_half_keeps_what_the_reward_split_had(write, bytes_tokenizer):
    path = str(write("a.jsonl", rows(4000)))
    _, (source,) = load({"s": {"path": path}}, bytes_tokenizer, halve=True, held_out_tokens=330)
    sizes = {name: len(part) for name, part in source.splits.items()}
    assert sizes == {"train": 3708, "reward": 64, "select": 64, "test": 64, "validation": 100}
    every = [t for part in texts(source, bytes_tokenizer).values() for t in part]
    assert len(set(every)) == 4000


def test_strata_by_a_column_follow_the_rows(write, bytes_tokenizer):
    graded = [{**row, "level": "abc"[i % 3]} for i, row in enumerate(rows(3000))]
    path = str(write("a.jsonl", graded))
    _, (source,) = load(
        {"s": {"path": path}},
        bytes_tokenizer,
        held_out_tokens=100,
        strata=3,
        strata_by="column:level",
    )
    for name, part in source.splits.items():
        for i in range(len(part)):
            number = int(bytes_tokenizer.decode(part.row(i)[0]).split()[2])
            assert source.strata[name][i] == number % 3
    assert source.report.warnings == ()


@settings(max_examples=15, deadline=None)
@given(count=st.integers(4, 200), fraction=st.floats(0.02, 0.9), least=st.integers(1, 30))
def test_every_row_is_somewhere_and_only_once(
    bytes_tokenizer, tmp_path_factory, count, fraction, least
):
    import json

    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    _, (source,) = load(
        {"s": {"path": str(path)}},
        bytes_tokenizer,
        held_out_fraction=fraction,
        held_out_tokens=40,
        held_out_rows=least,
    )
    every = [t for part in texts(source, bytes_tokenizer).values() for t in part]
    assert len(every) == len(set(every)) == count


# --- warnings ---


def test_warnings_name_what_is_not_used_and_what_is_small(write, bytes_tokenizer):
    more = {"id": 1, "url": "u", "messages": None}
    path = str(write("a.jsonl", [{**row, **more} for row in rows(400)]))
    big = str(write("b.jsonl", rows(3000, word="b")))
    sources = {"a": {"path": path}, "b": {"path": big}, "p": {"path": big, "target": 0}}
    _, found = load(sources, bytes_tokenizer)
    assert warnings_of(found, 64) == [
        "a: columns and keys without a use: id (400 rows), url (400 rows)",
        "fewer held-out rows than data.held_out_rows = 64, so that losses on them are noisy: "
        "a (reward 20, select 20, test 20); give the sources more rows, held-out files, or a "
        "larger data.held_out_fraction",
    ]
    assert warnings_of(found, 20) == warnings_of(found, 64)[:1]


def test_warnings_say_what_the_template_leaves_out(write, bytes_tokenizer):
    talk = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 1},
    ]
    path = str(write("a.jsonl", [{"messages": [{**talk[0], "content": str(i)}, talk[1]]}
                                 for i in range(20)]))  # fmt: skip
    _, (source,) = load({"s": {"path": path}}, bytes_tokenizer)
    assert source.report.warnings == ("the template leaves out: reasoning_content (20 rows)",)


def test_rows_of_two_sources_do_not_leak_under_error(write, bytes_tokenizer):
    from mixgym.envs.errors import SourceError

    one, two = (str(write(f"{name}.jsonl", rows(100))) for name in "ab")
    sources = {"a": {"path": one}, "b": {"path": two}}
    with pytest.raises(SourceError, match=r"source 'a': the .* row .*a.jsonl.* of source 'b'"):
        load(sources, bytes_tokenizer, duplicates="error")
    _, found = load(sources, bytes_tokenizer, duplicates="drop")
    trained, held = (
        {t for s in found for name in names for t in texts(s, bytes_tokenizer)[name]}
        for names in (("train",), HELD)
    )
    assert not trained & held
