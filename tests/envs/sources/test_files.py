import pytest

from mixgym.envs.errors import SourceError
from mixgym.envs.options import SourceOptions, WorldOptions
from mixgym.envs.sources.files import find_files as find
from mixgym.envs.sources.loading import read_sources

ROW = {"text": "x"}


def find_files(options, source):
    return {
        role: paths[0] if len(paths) == 1 else list(paths)
        for role, paths in find(options, source).roles.items()
    }


def names(folder, **options):
    found = find(SourceOptions(path=str(folder), **options), "s")
    return {role: [p.name for p in paths] for role, paths in found.roles.items()}


def test_folders_are_searched_for_known_names(write):
    row = {"text": "x"}
    folder = write("d/train.jsonl", [row]).parent
    write("d/dev.json", [row])
    write("d/test.jsonl", [row])
    other = write("other.jsonl", [row])
    found = find_files(SourceOptions(path=str(folder)), "s")
    assert {k: v.name for k, v in found.items()} == {
        "train": "train.jsonl",
        "valid": "dev.json",
        "test": "test.jsonl",
    }
    found = find_files(SourceOptions(path=str(folder), test=str(other)), "s")
    assert found["test"] == other
    same = SourceOptions(path=str(folder), reward=str(folder / "dev.json"), select=str(other))
    assert "valid" not in find_files(same, "s")
    with pytest.raises(SourceError, match="both its valid and its reward file"):
        find_files(SourceOptions(path=str(folder), reward=str(folder / "dev.json")), "s")
    write("d/validation.jsonl", [row])
    with pytest.raises(
        SourceError, match=r"has validation.jsonl and dev.json, both its valid file; keep one"
    ):
        find_files(SourceOptions(path=str(folder)), "s")


def test_a_folder_without_train_serves_a_target_only(write, tmp_path):
    folder = write("d/test.jsonl", [{"text": "x"}]).parent
    assert list(find_files(SourceOptions(path=str(folder), train=False), "s")) == ["test"]
    with pytest.raises(
        SourceError, match=r"no train.jsonl or train.json \(found: test.jsonl\).*train: false"
    ):
        find_files(SourceOptions(path=str(folder)), "s")
    with pytest.raises(SourceError, match="no train, valid or test file"):
        find_files(SourceOptions(path=str(tmp_path), train=False), "s")


def test_missing_paths_say_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError, match=f"'s': no file or folder at 'data/gone' .looked in {tmp_path}"
    ):
        find_files(SourceOptions(path="data/gone"), "s")


# --- shards ---


def test_shards_are_read_in_the_order_of_their_numbers(write, tmp_path):
    for number in (10, 2, 0, 1):
        write(f"d/part_{number}.jsonl", [{"text": f"n{number}"}])
    write("d/dataset_info.json", [{"about": "rows"}])
    write("d/.hidden.jsonl", [ROW])
    folder = tmp_path / "d"
    assert names(folder) == {
        "train": ["part_0.jsonl", "part_1.jsonl", "part_2.jsonl", "part_10.jsonl"]
    }
    held = str(write("r.jsonl", [{"text": "held"}]))
    options = WorldOptions.model_validate(
        {
            "sources": {"s": {"path": str(folder), "reward": held}},
            "data": {"held_out_fraction": 0.0},
        }
    )
    rows = read_sources(options)[0].rows
    assert [row.text for row in rows["train"]] == ["n0", "n1", "n2", "n10"]
    assert [row.where for row in rows["train"]][1] == f"{folder / 'part_1.jsonl'} line 1"


def test_shards_named_as_on_the_hub(write, tmp_path):
    for name in ("train-00001-of-00002", "train-00000-of-00002", "validation-00000-of-00001"):
        write(f"d/{name}.jsonl", [ROW])
    write("d/test-00000-of-00001.json", [ROW])
    assert names(tmp_path / "d") == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        "valid": ["validation-00000-of-00001.jsonl"],
        "test": ["test-00000-of-00001.json"],
    }
    one = find(SourceOptions(path=str(tmp_path / "d" / "train-00000-of-00002.jsonl")), "s")
    assert [p.name for p in one.unread] == ["train-00001-of-00002.jsonl"]
    (tmp_path / "d" / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(SourceError, match="has 1 of 2 shards of 'train': number 0 is missing"):
        names(tmp_path / "d")


def test_unnamed_shards_train_beside_a_held_out_file(write, tmp_path):
    write("d/a.jsonl", [ROW])
    write("d/b.json", [ROW])
    write("d/test.jsonl", [ROW])
    assert names(tmp_path / "d") == {"train": ["a.jsonl", "b.json"], "test": ["test.jsonl"]}


def test_files_that_are_not_read_are_told_of(write, tmp_path):
    write("d/train.jsonl", [{"text": "a"}])
    for name in ("more.ndjson", "old.json.gz", "README.md", ".hidden.csv"):
        (tmp_path / "d" / name).write_text("x")
    found = find(SourceOptions(path=str(tmp_path / "d")), "s")
    assert [p.name for p in found.unread] == ["more.ndjson", "old.json.gz"]


def test_files_without_a_role_are_told_of(write, tmp_path):
    write("d/train.jsonl", [ROW] * 8)
    write("d/extra.jsonl", [ROW])
    assert [p.name for p in find(SourceOptions(path=str(tmp_path / "d")), "s").unread] == [
        "extra.jsonl"
    ]
    options = WorldOptions.model_validate({"sources": {"s": {"path": str(tmp_path / "d")}}})
    (warning,) = read_sources(options)[0].warnings
    assert "extra.jsonl" in warning


@pytest.mark.parametrize(
    ("first", "second"),
    [("train.jsonl", "train.json"), ("train.jsonl", "train-00000-of-00001.jsonl")],
)
def test_two_train_files_that_are_no_shards(write, tmp_path, first, second):
    write(f"d/{first}", [ROW])
    write(f"d/{second}", [ROW])
    with pytest.raises(SourceError, match="both its train file; keep one"):
        names(tmp_path / "d")


def test_held_out_splits_may_be_folders_and_home_is_expanded(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("data/train.jsonl", [ROW])
    write("held/0.jsonl", [ROW])
    write("held/1.jsonl", [ROW])

    found = find(SourceOptions(path="~/data", reward="~/held"), "s")
    assert found.roles["train"] == (tmp_path / "data" / "train.jsonl",)
    assert [p.name for p in found.roles["reward"]] == ["0.jsonl", "1.jsonl"]
    single = find(SourceOptions(path="~/data/train.jsonl"), "s")
    assert single.roles["train"] == (tmp_path / "data" / "train.jsonl",)
