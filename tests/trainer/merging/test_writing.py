"""The output folder appears whole or not at all, and inputs are never touched."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mixgym.trainer.merging import MergeError, merge
from mixgym.trainer.merging.files import writing
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.files.writing import OutputFolder, parse_bytes, plan_shards
from mixgym.trainer.merging.methods.numerics import STORAGE


class CrashError(Exception):
    pass


def prints(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def crash_at(monkeypatch, module, name, number, after=False):
    """Make the number-th call of a function crash, before or after it has done its work."""
    real = getattr(module, name)
    calls = [0]

    def broken(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and not after:
            raise CrashError
        result = real(*args, **kwargs)
        if calls[0] == number:
            raise CrashError
        return result

    monkeypatch.setattr(module, name, broken)
    return calls


def count_calls(monkeypatch, name, recipe):
    with monkeypatch.context() as patch:
        calls = crash_at(patch, os, name, 10**9)
        merge(recipe)
    return calls[0]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["pwrite", "preadv", "fsync"])
def test_a_crash_at_any_call_leaves_nothing(bench, family, monkeypatch, name, after):
    base, paths, _, _ = family
    settings = {"chunk_elements": 4096, "max_shard_size": "5KB"}
    total = count_calls(monkeypatch, name, bench.recipe("ties", paths, base, **settings))
    before = prints(bench.folder)
    entries = sorted(path.name for path in bench.folder.iterdir())
    for number in range(1, total + 1, max(1, total // 12)):
        recipe = bench.recipe("ties", paths, base, **settings)
        with monkeypatch.context() as patch:
            crash_at(patch, os, name, number, after)
            published = name == "fsync" and number == total
            with pytest.raises(CrashError):
                merge(recipe)
        if not published:  # the last sync is of the parent, after the name was taken
            assert sorted(path.name for path in bench.folder.iterdir()) == entries
            assert prints(bench.folder) == before


def test_a_crash_while_overwriting_keeps_the_old_weights(bench, family, monkeypatch):
    _, paths, _, _ = family
    first = bench.recipe("linear", paths)
    merge(first)
    before = prints(first.out)
    again = bench.recipe("select", paths, out=first.out, overwrite=True)
    total = count_calls(monkeypatch, "pwrite", bench.recipe("select", paths))
    for number in range(1, total + 1):
        with monkeypatch.context() as patch:
            crash_at(patch, os, "pwrite", number)
            with pytest.raises(CrashError):
                merge(again)
        assert prints(first.out) == before


KILLED = """
import os, signal, sys
from mixgym.trainer.merging import merge, Recipe
real, calls = os.pwrite, [0]
def deadly(*args):
    calls[0] += 1
    if calls[0] == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
os.pwrite = deadly
merge(Recipe.parse({recipe!r}))
"""


def test_a_killed_run_is_cleared_by_the_next(bench, family):
    _, paths, _, _ = family
    recipe = bench.recipe("linear", paths)
    code = KILLED.format(number=3, recipe=recipe.model_dump())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Path(recipe.out).exists()
    left = list(bench.folder.glob(".*.partial-*"))
    assert len(left) == 1
    merge(recipe)
    assert not list(bench.folder.glob(".*"))
    assert set(bench.load(recipe.out)) == set(bench.load(paths[0]))


def test_a_run_that_is_alive_keeps_its_folder(bench):
    info = TensorInfo("w", (4,), STORAGE["F32"], STORAGE["F32"])
    target = bench.folder / "out"
    with OutputFolder(target, [info], 10**9, False) as first:
        with OutputFolder(target, [info], 10**9, False) as second:
            assert first.temporary.is_dir()
            assert first.temporary != second.temporary
        assert first.temporary.is_dir()
        assert not second.temporary.exists()


def test_an_interrupted_replacement_is_undone(bench, family):
    _, paths, _, _ = family
    recipe = bench.recipe("linear", paths, overwrite=True)
    merge(recipe)
    before = prints(recipe.out)
    target = Path(recipe.out)
    target.rename(target.with_name(f".{target.name}.replaced"))  # as if killed in between
    writing.clear_leftovers(target)
    assert prints(target) == before


@pytest.mark.parametrize("name", ["pwrite", "fsync", "ftruncate"])
def test_a_full_disk_is_named(bench, family, monkeypatch, name):
    _, paths, _, _ = family
    recipe = bench.recipe("linear", paths)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(MergeError, match=r"disk under .* is full; free [\d,]+ bytes"):
        merge(recipe)
    assert not Path(recipe.out).exists()
    assert not list(bench.folder.glob(".*"))


def test_too_small_a_disk_is_seen_beforehand(bench, family, monkeypatch):
    _, paths, _, _ = family
    monkeypatch.setattr(
        writing.shutil, "disk_usage", lambda path: os.terminal_size((1, 1)) and Free
    )
    recipe = bench.recipe("linear", paths)
    with pytest.raises(MergeError, match=r"needs [\d,]+ bytes and .* has 5 free"):
        merge(recipe, dry_run=True)


class Free:
    free = 5


def test_an_input_that_shrinks_while_it_is_read(bench, family, monkeypatch):
    _, paths, _, _ = family
    recipe = bench.recipe("linear", paths)
    monkeypatch.setattr(os, "preadv", lambda *args: 0)
    with pytest.raises(MergeError, match="ended inside tensor"):
        merge(recipe)
    assert not Path(recipe.out).exists()


def test_a_folder_that_is_not_empty_is_refused(bench, family):
    _, paths, _, _ = family
    out = bench.folder / "out"
    out.mkdir()
    merge(bench.recipe("linear", paths, out=str(out)))  # empty is fine
    with pytest.raises(MergeError, match=r"not empty; choose another, or pass --overwrite"):
        merge(bench.recipe("linear", paths, out=str(out)))
    with pytest.raises(MergeError, match="is a file"):
        merge(bench.recipe("linear", paths, out=str(out / "config.json")))


def test_overwriting_leaves_no_stale_weights(bench, family):
    _, paths, _, models = family
    out = str(bench.folder / "out")
    merge(bench.recipe("linear", paths, out=out))
    (Path(out) / "notes.txt").write_text("mine")
    (Path(out) / "pytorch_model.bin").write_text("old")
    merge(bench.recipe("passthrough", paths[:1], out=out, overwrite=True, max_shard_size="5KB"))
    assert not (Path(out) / "model.safetensors").exists()
    assert not (Path(out) / "pytorch_model.bin").exists()
    assert (Path(out) / "notes.txt").read_text() == "mine"
    merged = bench.load(out)
    assert all(torch.equal(merged[name], models[0][name]) for name in merged)
    assert not list(bench.folder.glob(".*"))


def test_inputs_are_never_the_output(bench, family):
    _, paths, _, _ = family
    for out in (paths[0], str(bench.folder), paths[0] + "/inner"):
        with pytest.raises(MergeError, match="overlap"):
            merge(bench.recipe("linear", paths, out=out, overwrite=True))


def test_a_dry_run_writes_nothing_and_reads_no_data(bench, family, monkeypatch):
    base, paths, _, _ = family
    recipe = bench.recipe("ties", paths, base)
    before = prints(bench.folder)
    monkeypatch.setattr(os, "preadv", None)
    report = merge(recipe, dry_run=True)
    assert report.is_dry_run
    assert "would write" in report.text()
    assert report.parameters == sum(x.numel() for x in bench.load(base).values())
    assert prints(bench.folder) == before
    assert not Path(recipe.out).exists()


def test_a_failure_in_one_thread_stops_the_others(bench, family, monkeypatch):
    _, paths, _, _ = family
    recipe = bench.recipe("linear", paths, threads=3, chunk_elements=4096)
    crash_at(monkeypatch, os, "preadv", 4)
    with pytest.raises(CrashError):
        merge(recipe)
    assert not Path(recipe.out).exists()
    assert not list(bench.folder.glob(".*"))


def test_mixed_types_are_aligned_and_open_with_the_library(bench):
    tensors = {
        "a.half": torch.ones(3, dtype=torch.bfloat16),
        "b.wide": torch.ones(5, dtype=torch.float64),
        "c.flag": torch.tensor([True]),
        "d.empty": torch.ones(0, 4),
        "e.word": torch.ones(3),
    }
    one = bench.write("one", tensors)
    merged, report = bench.run("passthrough", [one])
    with safe_open(Path(report.out) / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    for name, tensor in tensors.items():
        assert torch.equal(merged[name], tensor)


@pytest.mark.parametrize(
    ("text", "count"), [("5GB", 5 * 10**9), (17, 17), ("2 KiB", 2048), ("1.5MB", 1_500_000)]
)
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["much", "5 parsecs", "0", "-3"])
def test_sizes_that_are_none(text):
    with pytest.raises(MergeError, match="max_shard_size"):
        parse_bytes(text)


def test_shards_hold_at_most_the_limit():
    kind = STORAGE["F32"]
    infos = [TensorInfo(f"t{i}", (size,), kind, kind) for i, size in enumerate((10, 10, 30, 5))]
    shards = plan_shards(infos, 80)
    assert [[t.name for t in s] for s in shards.values()] == [["t0", "t1"], ["t2"], ["t3"]]
    assert list(shards) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_peak_memory_does_not_hold_a_tensor(bench):
    code = """
import sys, resource, threading, time
from mixgym.trainer.merging import merge, Recipe
from mixgym.trainer.merging import engine
def anonymous():
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024
before = anonymous()
peak = [0]
def watch(done, total):
    peak[0] = max(peak[0], anonymous())
merge(Recipe.parse({recipe!r}), progress=watch)
sys.stdout.write(str(peak[0] - before))
"""
    model = {"w": torch.zeros(15_000_000, dtype=torch.bfloat16)}
    paths = [bench.write(f"m{i}", model) for i in range(2)]
    recipe = bench.recipe("ties", paths[1:], paths[0], parameters={"density": 0.5})
    done = subprocess.run(
        [sys.executable, "-c", code.format(recipe=recipe.model_dump())],
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 25e6  # the tensor alone has 30 MB in each model
