import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, DataOptions, SourceOptions, WorldOptions
from mixgym.envs.sources.loading import encode_sources, read_sources, training_texts

DATA = os.environ.get("MIXGYM_DATA")


def world(data=None, seed=0, **sources):
    return WorldOptions(
        seed=seed,
        sources={name: SourceOptions(**options) for name, options in sources.items()},
        data=DataOptions(**(data or {})),
    )


def pair_rows(count, start=0):
    return [
        {"prompt": f"say {i}", "completion": "x" * (1 + i % 7)} for i in range(start, start + count)
    ]


def test_the_embedded_world_is_complete_and_repeatable(bytes_tokenizer):
    options = WorldOptions()
    raw = read_sources(options)
    assert raw == read_sources(options)
    first = encode_sources(raw, bytes_tokenizer, options.data, 0)
    again = encode_sources(raw, bytes_tokenizer, options.data, 0)
    assert [source.name for source in first] == [source.name for source in raw]
    for one, other in zip(first, again, strict=True):
        for split in SPLITS:
            rows = one.splits[split]
            assert len(rows) == len(one.strata[split]) > 0
            np.testing.assert_array_equal(rows.tokens, other.splits[split].tokens)
            assert set(one.strata[split]) == {0, 1, 2, 3}
            if split != "train":
                assert rows.supervised.sum() <= options.data.held_out_tokens
        assert one.n_strata == 4
        assert (one.target == 0) == (one.name == "noise")
        assert "rows not generated: task exhausted" not in one.report.counts


def test_the_report_counts_what_every_policy_did(write, bytes_tokenizer):
    rows = [*pair_rows(40), {"prompt": "only"}, {"prompt": "p" * 200, "completion": "c" * 200}]
    train = write("a.jsonl", [*rows, rows[0]])
    test = write("t.jsonl", [rows[0], *pair_rows(9, 100)])
    options = world(
        {"malformed": "skip", "max_length": 64, "held_out_tokens": 30, "held_out_rows": 1},
        a={"path": str(train), "test": str(test)},
    )
    raw = read_sources(options)
    source = encode_sources(raw, bytes_tokenizer, options.data, 0)[0]
    assert source.report.origin == str(train)
    assert source.report.row_format == "prompt"
    counts = dict(source.report.counts)
    kept = len(source.splits["test"])
    assert kept < 10
    assert counts.pop("rows set aside: test over held_out_tokens") == 10 - kept
    assert counts.pop("supervised tokens cut") == 201 - 63
    assert (
        sum(
            n
            for name, n in counts.items()
            if name.startswith("duplicates: ") and name.endswith("in test")
        )
        == 2
    )
    for name in ("lines skipped: malformed", "rows truncated"):
        assert counts[name] == 1
    assert counts["rows read"] == 52
    assert 0 not in counts.values()


def test_dropped_duplicates_leave_disjoint_splits(write):
    path = write("a.jsonl", pair_rows(30) + pair_rows(30))
    raw = read_sources(
        world({"duplicates": "drop", "held_out_fraction": 0.2}, a={"path": str(path)})
    )[0]
    content = [{row.content for row in raw.rows[name]} for name in SPLITS]
    assert sum(map(len, content)) == 30


def test_files_shared_by_two_sources_are_reported(write):
    path = str(write("a.jsonl", pair_rows(20)))
    other = str(write("b.jsonl", pair_rows(20)))
    raw = read_sources(
        world(a={"path": path}, b={"path": other, "target": 0}, c={"path": path, "test": other})
    )
    assert [{k: v for k, v in r.counts.items() if "shared" in k} for r in raw] == [
        {"files shared with c": 1},
        {"files shared with c": 1},
        {"files shared with a": 1, "files shared with b": 1},
    ]


def test_targets_without_training_and_pools_without_targets(write, bytes_tokenizer):
    path = str(write("a.jsonl", pair_rows(12)))
    pool = str(write("b.jsonl", pair_rows(12)))
    options = world(
        {"held_out_fraction": 0.0},
        goal={"path": path, "train": False},
        pool={"path": pool, "target": 0, "max_epochs": 2},
    )
    raw = read_sources(options)
    goal, pool = encode_sources(raw, bytes_tokenizer, options.data, 0)
    assert [len(goal.splits[name]) for name in SPLITS] == [0, 4, 4, 4]
    assert [len(pool.splits[name]) for name in SPLITS] == [12, 0, 0, 0]
    assert (pool.target, pool.max_epochs) == (0, 2)
    assert list(training_texts(raw)) == [
        f"User: {row['prompt']}\nAssistant:\n{row['completion']}" for row in pair_rows(12)
    ]


def test_embedded_sources_take_held_out_files_and_columns(write, bytes_tokenizer):
    test = write("t.jsonl", [{"prompt": "1+1", "completion": "2", "difficulty": 0}])
    options = world(
        {"strata_by": "column:difficulty"},
        sums={"embedded": "addition", "rows": 40, "test": str(test)},
    )
    source = encode_sources(read_sources(options), bytes_tokenizer, options.data, 0)[0]
    assert source.strata["test"].tolist() == [0]
    assert np.bincount(source.strata["train"]).tolist() == [9] * 4
    assert source.report.origin == "embedded:addition"


def test_an_exhausted_task_is_reported():
    raw = read_sources(world(words={"embedded": "numbers", "rows": 2000}))[0]
    counts = raw.counts
    assert counts["rows read"] + counts["rows not generated: task exhausted"] == 2000


@pytest.mark.parametrize(
    ("sources", "data", "reason"),
    [
        ({}, {}, "there are no sources; give"),
        (
            {"a": {"target": 0}, "b": {"target": 0}},
            {},
            r"every source has target 0 \(a, b\).*positive target",
        ),
        ({"a": {"train": False}}, {}, r"every source has train: false \(a\).*let at least one"),
        (
            {"a": {}},
            {"held_out_fraction": 0},
            "'a' has target 1 but no reward rows.*give it a reward file",
        ),
    ],
)
def test_mixtures_that_cannot_be_learned_from(write, sources, data, reason):
    path = str(write("a.jsonl", pair_rows(20)))
    with pytest.raises(SourceError, match=reason):
        read_sources(
            world(data, **{name: {"path": path, **more} for name, more in sources.items()})
        )


def test_sources_emptied_by_a_policy(write, bytes_tokenizer):
    rows = [{"prompt": "p" * 99, "completion": "c"}]
    path = str(write("a.jsonl", rows * 20))
    options = world({"over_long": "skip", "max_length": 32}, a={"path": path})
    with pytest.raises(SourceError, match=r"'a' has no train rows left.*data.over_long"):
        encode_sources(read_sources(options), bytes_tokenizer, options.data, 0)
    with pytest.raises(SourceError, match=r"'a' has no train rows left.*data.duplicates"):
        read_sources(world({"duplicates": "drop"}, a={"path": path}))


def test_relative_paths_start_at_the_current_directory(write, monkeypatch):
    path = write("here/a.jsonl", pair_rows(8))
    monkeypatch.chdir(path.parent)
    assert read_sources(world(a={"path": "a.jsonl"}))[0].rows["train"][0].file == "a.jsonl"


def test_reading_imports_no_heavy_library():
    code = (
        "import sys; from mixgym.envs.sources import loading; "
        "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ROWS = {
    "multitask": {
        "general": 6000,
        "noise": 800,
        "math": 3000,
        "medical": 1500,
        "finance": 700,
        "code": 350,
        "longcontext": 70,
    },
    "multilingual": {"en": 700, "es": 500, "de": 350, "ru": 220, "zh": 140, "ar": 80, "hi": 40},
}


@pytest.mark.skipif(
    DATA is None, reason="set MIXGYM_DATA to a folder with multitask/ and multilingual/"
)
@pytest.mark.parametrize("mixture", ROWS)
def test_real_text_is_read_whole(mixture):
    raw = read_sources(
        world(**{name: {"path": str(Path(DATA or "") / mixture / name)} for name in ROWS[mixture]})
    )
    assert {source.name: len(source.rows["train"]) for source in raw} == ROWS[mixture]
    for source in raw:
        folder = Path(source.origin)
        held = {p.stem: len(p.read_text("utf-8").split("\n")) - 1 for p in folder.glob("*.jsonl")}
        assert len(source.rows["reward"]) + len(source.rows["select"]) == held["valid"]
        assert len(source.rows["test"]) == held["test"]


@pytest.mark.skipif(
    DATA is None, reason="set MIXGYM_DATA to a folder with multitask/ and multilingual/"
)
@pytest.mark.parametrize("language", ["ar", "hi", "zh", "de"])
def test_real_labels_are_the_completions(bytes_tokenizer, language):
    options = world(
        {"max_length": 1 << 16, "held_out_tokens": 1 << 30},
        a={"path": str(Path(DATA or "") / "multilingual" / language)},
    )
    raw = read_sources(options)[0]
    source = encode_sources([raw], bytes_tokenizer, options.data, 0)[0]
    for split in SPLITS:
        for index, row in enumerate(raw.rows[split]):
            tokens, labels = source.splits[split].row(index)
            assert bytes_tokenizer.decode(tokens[labels]) == row.messages[-1][1] + "<eos>"


def test_every_json_line_of_a_folder_source_is_accounted_for(write):
    folder = write("d/train.jsonl", pair_rows(30)).parent
    write("d/valid.jsonl", pair_rows(5, 50))
    (folder / "test.json").write_text(json.dumps({"data": pair_rows(4, 70)}))
    raw = read_sources(world(d={"path": str(folder)}))[0]
    assert [len(raw.rows[name]) for name in SPLITS] == [30, 3, 2, 4]
    assert raw.counts == {"rows read": 39}


def test_the_remainder_of_the_strata_can_be_dropped(write, bytes_tokenizer):
    path = str(write("a.jsonl", pair_rows(33)))
    options = world({"remainder": "drop", "held_out_fraction": 0.1, "strata": 5}, a={"path": path})
    source = encode_sources(read_sources(options), bytes_tokenizer, options.data, 0)[0]
    counts = np.bincount(source.strata["train"])
    assert counts.tolist() == [len(source.splits["train"]) // 5] * 5
    dropped = source.report.counts["rows dropped: remainder of the strata"]
    held_out = sum(len(source.splits[name]) for name in SPLITS[1:])
    assert len(source.splits["train"]) + dropped + held_out == 33
    assert 0 < dropped < 5


def test_a_validation_half_is_not_capped(write, bytes_tokenizer):
    files = {
        "path": str(write("a.jsonl", pair_rows(4))),
        "reward": str(write("r.jsonl", pair_rows(40, 50))),
    }
    options = world({"held_out_tokens": 30, "held_out_rows": 1, "strata": 1}, a=files)
    raw = read_sources(options)
    source = encode_sources(raw, bytes_tokenizer, options.data, 0, halve=True)[0]
    assert len(source.splits["validation"]) == 20
    assert source.splits["validation"].supervised.sum() > 30
    assert 0 < source.splits["reward"].supervised.sum() <= 30
    aside = source.report.counts["rows set aside: reward over held_out_tokens"]
    assert aside == 20 - len(source.splits["reward"])


@pytest.mark.parametrize(("labels", "told"), [("completions", 20), ("all", 0)])
def test_turns_that_nothing_is_learnt_from_are_told_of(write, bytes_tokenizer, labels, told):
    talk = [("user", "q"), ("assistant", "a"), ("user", "bye")]
    rows = [{"messages": [{"role": r, "content": f"{c}{i}"} for r, c in talk]} for i in range(20)]
    options = world({"labels": labels}, a={"path": str(write("a.jsonl", rows))})
    source = encode_sources(read_sources(options), bytes_tokenizer, options.data, 0)[0]
    said = f"nothing is learnt from turns behind the last answer ({told} rows)"
    assert source.report.warnings == ((said,) if told else ())
