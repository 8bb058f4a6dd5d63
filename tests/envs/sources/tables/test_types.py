"""Every type of file, from a real file of it."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SPLITS, DataOptions, SourceOptions, WorldOptions
from mixgym.envs.sources.loading import encode_sources, read_sources
from mixgym.envs.sources.reading import Reading, read_rows

ROWS = [{"prompt": f"2+{i}", "completion": str(i + 2), "level": str(i % 3)} for i in range(12)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_parquet(path, rows=ROWS):
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)


def write_stream(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


def write_footed(path, rows=ROWS):
    pa.feather.write_feather(pa.Table.from_pylist(rows), path, compression="uncompressed")


def write_table(path, separator, rows=ROWS):
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES, mtime=0)),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(LINES)),
    "a.parquet": write_parquet,
    "a.csv": lambda path: write_table(path, ","),
    "a.tsv": lambda path: write_table(path, "\t"),
    "stream.arrow": write_stream,
    "footed.arrow": write_footed,
}


def read(path, malformed="error", **how):
    return read_rows({"train": path}, "s", how=Reading(malformed, **how))


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_from_every_type(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    found = read(path, cache=tmp_path / "cache")
    rows = found.rows["train"]
    assert [row.content for row in rows] == [
        ((("user", row["prompt"]), ("assistant", row["completion"])), None) for row in ROWS
    ]
    assert [row.columns["level"] for row in rows] == [row["level"] for row in ROWS]
    unit = "line" if "json" in name and name != "a.json" else "row"
    assert [row.where for row in rows[3:5]] == [f"{path} {unit} 4", f"{path} {unit} 5"]
    again = pickle.loads(pickle.dumps(rows))  # as a process that encodes a share takes them
    assert again.pick(np.array([7, 2])) == (rows[7], rows[2])


def broken(name):
    """A file whose third row has no completion."""
    rows = [dict(row) for row in ROWS]
    rows[2]["completion"] = ""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {
        "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines, mtime=0)),
        "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(lines)),
        "a.parquet": lambda path: write_parquet(path, rows),
        "a.csv": lambda path: write_table(path, ",", rows),
        "stream.arrow": lambda path: write_stream(path, rows),
    }[name]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.jsonl.gz", "line 3"),
        ("a.jsonl.zst", "line 3"),
        ("a.parquet", "row 3"),
        ("a.csv", "row 3"),
        ("stream.arrow", "row 3"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_number(tmp_path, name, place):
    path = tmp_path / name
    broken(name)(path)
    with pytest.raises(SourceError, match=f"{path} {place}: 'completion' is empty; correct"):
        read(path)
    found = read(path, "skip")
    assert (found.skipped, len(found.rows["train"])) == (1, 11)
    assert [row.line for row in found.rows["train"]][:3] == [1, 2, 4]


def test_texts_of_tables_stay_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffquestion,answer\n"one,\ntwo",007\nNA,null\n', encoding="utf-8")
    rows = read(path).rows["train"]
    assert [row.messages[0][1] for row in rows] == ["one,\ntwo", "NA"]
    assert [row.messages[1][1] for row in rows] == ["007", "null"]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl.gz", b"no gzip", "cannot be unpacked .*of the type that its name says"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-12], "cannot be unpacked"),
        ("a.jsonl.zst", b"no zstd", "cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz is empty"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.csv", b"a,b\n1,2\n1,2,3,4\n", r"cannot be read as csv \(.*line 3"),
        ("a.csv", b"a,a\n1,2\n", "line 1: two columns are called 'a'"),
        ("a.csv", b"prompt,completion\n", "holds no rows"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"caf\xe9,b\n1,2\n", "is not UTF-8"),
        ("a.arrow", b"no arrow", "is no Arrow file that can be read"),
    ],
)
def test_unusable_files_say_which_and_why(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError, match=rf"source 's': .*{reason}"):
        read(path)


def test_four_types_in_one_run(tmp_path, bytes_tokenizer):
    names = ("a.jsonl.zst", "a.parquet", "a.csv", "stream.arrow")
    for name in names:
        WRITERS[name](tmp_path / name)
    options = WorldOptions(
        sources={f"s{i}": SourceOptions(path=str(tmp_path / name)) for i, name in enumerate(names)},
        data=DataOptions(cache=None),
    )
    sources = encode_sources(read_sources(options), bytes_tokenizer, options.data, 0)
    for source in sources:
        assert sum(len(source.splits[split]) for split in SPLITS) == 12
        assert source.report.row_format == "prompt"


# --- globs, lists, folders ---


def train_of(tmp_path, **options):
    goal = SourceOptions(embedded="addition", rows=40, train=False)
    options = WorldOptions(
        sources={"s": SourceOptions(**{"target": 0, **options}), "goal": goal},
        data=DataOptions(held_out_fraction=0, cache=str(tmp_path / "cache")),
    )
    return read_sources(options)[0]


def test_globs_and_lists_are_read_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        WRITERS[name if name in WRITERS else f"a{Path(name).suffix}"](tmp_path / name)
    raw = train_of(tmp_path, path=str(tmp_path / "*.jsonl"))
    assert [row.file for row in raw.rows["train"]][::12] == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
    ]
    both = [str(tmp_path / "c.csv"), str(tmp_path / "[ab].jsonl")]
    raw = train_of(tmp_path, path=both)
    assert [Path(row.file).name for row in raw.rows["train"]][::12] == [
        "c.csv",
        "a.jsonl",
        "b.jsonl",
    ]
    assert raw.origin == ", ".join(both)
    with pytest.raises(SourceError, match=r"matches .*correct the pattern"):
        train_of(tmp_path, path=str(tmp_path / "*.txt"))
    with pytest.raises(SourceError, match=r"stands in path twice"):
        train_of(tmp_path, path=[str(tmp_path / "c.csv"), str(tmp_path / "*.csv")])


def test_columns_are_renamed_and_checked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "hi", "reply": "yo", "level": 1}\n')
    names = {"q": "prompt", "reply": "completion"}
    (row,) = read(path, columns=names).rows["train"]
    assert row.messages == (("user", "hi"), ("assistant", "yo"))
    assert row.columns == {"level": 1}
    with pytest.raises(SourceError, match=r"no row has a column 'replay'; did you mean reply"):
        read(path, columns={"q": "prompt", "replay": "completion"})
    path.write_text('{"q": "hi", "prompt": "ho", "reply": "yo"}\n')
    with pytest.raises(SourceError, match=r"line 1: columns calls 'q' 'prompt', and the row has"):
        read(path, columns=names)


# --- what the library datasets writes ---


@pytest.fixture
def saved(tmp_path):
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(ROWS)
    parts = {"train": whole, "validation": whole.select(range(4)), "test": whole.select([5, 3])}
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(parts).save_to_disk(tmp_path / "several")
    return tmp_path


def test_folders_of_save_to_disk(saved):
    raw = train_of(saved, path=str(saved / "one"))
    assert [row.messages[0][1] for row in raw.rows["train"]] == [row["prompt"] for row in ROWS]
    assert raw.rows["train"][7].where == f"{saved / 'one' / 'data-00001-of-00002.arrow'} row 2"
    raw = train_of(saved, path=str(saved / "several"))
    assert [len(raw.rows[split]) for split in SPLITS] == [12, 2, 2, 2]
    assert [row.messages[0][1] for row in raw.rows["test"]] == ["2+5", "2+3"]
    raw = train_of(saved, path=str(saved / "several"), split="validation")
    assert [len(raw.rows[split]) for split in SPLITS] == [4, 0, 0, 0]
    with pytest.raises(SourceError, match=r"split=valid: .* has no such split; did you mean valid"):
        train_of(saved, path=str(saved / "several"), split="valid")
    with pytest.raises(SourceError, match=r"split=train: .* is no data set with splits"):
        train_of(saved, path=str(saved / "one"), split="train")
    (saved / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(SourceError, match=r"is incomplete: data-00001-of-00002.arrow is missing"):
        train_of(saved, path=str(saved / "one"))


CARD = """---
configs:
- config_name: sums
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: other
  data_files: other/*.parquet
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that is laid out like a data set of the hub, and a cache of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    folder = tmp_path / "sums"
    for part in ("data", "other"):
        (folder / part).mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", ROWS[:6])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", ROWS[6:])
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", ROWS[:2])
    write_parquet(folder / "other" / "rows.parquet", ROWS[:3])
    (folder / "README.md").write_text(CARD)
    return folder


def test_data_sets_of_the_hub(hub):
    raw = train_of(hub, hub=str(hub), config="sums")
    assert [len(raw.rows[split]) for split in SPLITS] == [12, 0, 0, 2]
    assert raw.rows["train"][6].where == f"{hub} train row 7"
    assert raw.origin == f"hub:{hub} sums"
    raw = train_of(hub, hub=str(hub), config="sums", split="test")
    assert [row.messages[0][1] for row in raw.rows["train"]] == ["2+0", "2+1"]
    raw = train_of(hub, hub=str(hub), config="other")
    assert len(raw.rows["train"]) == 3
    with pytest.raises(SourceError, match=r"hub=.*Config name is missing.*sums.*give config"):
        train_of(hub, hub=str(hub))
    with pytest.raises(SourceError, match=r"'nope' not found. Available: .*sums.*give config"):
        train_of(hub, hub=str(hub), config="nope")
    with pytest.raises(SourceError, match=r"split=trian: .* did you mean train"):
        train_of(hub, hub=str(hub), config="sums", split="trian")
    with pytest.raises(SourceError, match=r"parts of one are not known"):
        train_of(hub, hub=str(hub), config="sums", split="train[:10]")


def test_a_hub_that_cannot_be_reached_says_so(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"hub=some/set: cannot be reached, .*before where there"):
        train_of(hub, hub="some/set", revision="v1")
