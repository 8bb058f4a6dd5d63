import json
import os
import threading

import numpy as np
import pytest

from mixgym.envs.sources.cached import shelf as shelves
from mixgym.envs.sources.cached.shelf import Shelf

ARRAYS = {
    "tokens": np.arange(10_000, dtype=np.int32),
    "pairs": np.arange(12, dtype=np.uint64).reshape(6, 2),
    "none": np.zeros(0, np.int64),
}
NOTE = {"format": "prompt", "unused": {"id": 3}}


def same(entry):
    assert entry.note == NOTE
    for name, array in ARRAYS.items():
        assert entry.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(entry.arrays[name], array)


def test_an_entry_comes_back_as_it_was(tmp_path):
    shelf = Shelf(tmp_path / "rows")
    assert shelf.find("a") is None
    shelf.keep("a", ARRAYS, NOTE)
    same(shelf.find("a"))
    entry = shelf.find("a", mapped=("tokens", "none"))
    same(entry)
    assert not entry.arrays["tokens"].flags.writeable
    assert [p.name for p in (tmp_path / "rows").iterdir()] == ["a"]


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda place: flip(place / "tokens.bin", 20_000),
        lambda place: flip(place / "pairs.bin", 0),
        lambda place: os.truncate(place / "tokens.bin", 39_996),
        lambda place: (place / "pairs.bin").unlink(),
        lambda place: (place / "note.json").write_text("{"),
        lambda place: (place / "note.json").write_text(
            (place / "note.json").read_text().replace("prompt", "pr0mpt")
        ),
        lambda place: (place / "note.json").write_text(json.dumps([1])),
    ],
)
def test_a_damaged_entry_is_noticed_and_made_anew(tmp_path, harm):
    shelf = Shelf(tmp_path)
    shelf.keep("a", ARRAYS, NOTE)
    harm(tmp_path / "a")
    assert shelf.find("a", mapped=("tokens",)) is None
    assert not (tmp_path / "a").exists()
    shelf.keep("a", ARRAYS, NOTE)
    same(shelf.find("a"))


def test_an_entry_is_not_there_before_it_is_complete(tmp_path):
    shelf = Shelf(tmp_path)

    def fill():
        with shelf.filling("a") as writer:
            writer.append("tokens", ARRAYS["tokens"])
            assert shelf.find("a") is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_that_make_an_entry_wins(tmp_path):
    shelf = Shelf(tmp_path)
    with shelf.filling("a") as writer:
        writer.append("tokens", ARRAYS["tokens"])
        shelf.keep("a", ARRAYS, NOTE)
        entry = shelf.find("a", mapped=("tokens",))
    same(entry)
    same(shelf.find("a"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_others_wait_while_an_entry_is_made(tmp_path):
    shelf, order = Shelf(tmp_path), []
    waiting = threading.Event()

    def other():
        waiting.set()
        with shelf.making("a"):
            order.append("other")

    with shelf.making("a"):
        thread = threading.Thread(target=other)
        thread.start()
        waiting.wait()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_the_longest_unused_entries_go_when_there_are_too_many(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path)
    for age, key in enumerate(("old", "older", "oldest")):
        shelf.keep(key, ARRAYS, NOTE)
        os.utime(tmp_path / key, (1e9 - age, 1e9 - age))
    leftover = tmp_path / ".tmp-killed"
    leftover.mkdir()
    os.utime(leftover, (1, 1))
    shelf.find("oldest")  # it is used
    monkeypatch.setattr(shelves, "MOST_BYTES", 3 * 42_000)
    shelf.keep("new", ARRAYS, NOTE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old", "oldest"]
