"""Writes are seen complete or not at all, whichever failpoint they die at."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs import storage


class _DiedError(Exception):
    """What the failpoints of these tests raise."""


@pytest.fixture(autouse=True)
def _no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "on_failpoint", None)


def failpoints_of(action: Callable[[], object]) -> list[str]:
    """Run ``action`` unharmed and return the failpoints that it passed."""
    names: list[str] = []
    storage.on_failpoint = names.append
    action()
    storage.on_failpoint = None
    return names


def die_at(index: int) -> None:
    """Raise at the failpoint of that index."""
    reached = iter(range(10**6))

    def hook(name: str) -> None:
        if next(reached) == index:
            raise _DiedError(name)

    storage.on_failpoint = hook


def leftovers(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.name.startswith((".tmp-", ".old-"))
    )


def fill(folder: Path, text: str) -> None:
    with storage.atomic_folder(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_text(text)


def write(path: Path, text: str) -> None:
    storage.write_text(path, text)


@pytest.mark.parametrize("existing", [True, False])
def test_file_is_old_or_new_at_every_failpoint(tmp_path: Path, existing: bool) -> None:
    names = failpoints_of(lambda: write(tmp_path / "probe", "x"))
    assert len(names) == 5
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        folder.mkdir()
        path = folder / "file"
        if existing:
            write(path, "old")
        die_at(index)
        with pytest.raises(_DiedError, match=name):
            write(path, "new")
        storage.on_failpoint = None
        storage.clean(folder)
        assert leftovers(folder) == []
        if name == "rename:after":
            assert path.read_text() == "new"
        else:
            assert (path.read_text() if path.exists() else None) == ("old" if existing else None)


@pytest.mark.parametrize("existing", [True, False])
def test_folder_is_old_or_new_at_every_failpoint(tmp_path: Path, existing: bool) -> None:
    probe = tmp_path / "probe"
    if existing:
        fill(probe, "old")
    names = failpoints_of(lambda: fill(probe, "new"))
    assert len(names) == (7 if existing else 5)
    for index, name in enumerate(names):
        parent = tmp_path / str(index)
        parent.mkdir()
        folder = parent / "folder"
        if existing:
            fill(folder, "old")
        die_at(index)
        with pytest.raises(_DiedError, match=name):
            fill(folder, "new")
        storage.on_failpoint = None
        storage.clean(parent)
        assert leftovers(parent) == []
        arrived = name in ("folder-rename:after", "folder-rename:removed")
        expected = "new" if arrived else "old" if existing else None
        file = folder / "deep" / "file"
        assert (file.read_text() if file.exists() else None) == expected


KILLED = """
import sys
from pathlib import Path
from mixgym.envs import storage
folder = Path(sys.argv[1])
with storage.atomic_folder(folder / "folder") as temporary:
    (temporary / "file").write_text("new")
storage.write_text(folder / "file", "new")
storage.append_line(folder / "lines", "new")
storage.remove_folder(folder / "folder")
"""


def test_sigkill_at_every_failpoint(tmp_path: Path) -> None:
    """A real kill runs no handler: what stays must be old or new after ``clean``."""
    survived = False
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        with storage.atomic_folder(folder / "folder") as temporary:
            (temporary / "file").write_text("old")
        write(folder / "file", "old")
        storage.append_line(folder / "lines", "old")
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder)],
            env={**os.environ, storage.KILL_VARIABLE: str(number)},
            check=False,
        ).returncode
        storage.clean(folder)
        assert leftovers(folder) == []
        assert (folder / "file").read_text() in ("old", "new")
        assert (folder / "lines").read_text() in ("old\n", "old\nnew\n")
        if code == 0:
            survived = True
            assert not (folder / "folder").exists()
            break
        assert code == -signal.SIGKILL
        if (folder / "folder").exists():
            assert (folder / "folder" / "file").read_text() in ("old", "new")
        else:  # only its removal, which is last, may have taken it
            assert (folder / "lines").read_text() == "old\nnew\n"
    assert survived
    assert number == 18  # 7 + 5 + 2 + 3 failpoints, and the run that outlives them


def test_append_at_every_failpoint(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    storage.append_line(path, "one")
    names = failpoints_of(lambda: storage.append_line(path, "two", sync=False))
    assert names == ["append:before", "append:after"]
    die_at(0)
    with pytest.raises(_DiedError):
        storage.append_line(path, "three")
    assert path.read_text() == "one\ntwo\n"
    die_at(1)
    with pytest.raises(_DiedError):
        storage.append_line(path, "three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_append_refuses_line_ends(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line end"):
        storage.append_line(tmp_path / "lines", "a\nb")


def test_an_error_in_the_body_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), storage.atomic_folder(tmp_path / "folder"):
        raise KeyError("body")
    assert list(tmp_path.iterdir()) == []


def test_clean_leaves_everything_else_alone(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("mine")
    (tmp_path / ".tmp-file-1-2").write_text("torn")
    (tmp_path / ".tmp-folder-1-2").mkdir()
    storage.clean(tmp_path)
    storage.clean(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_exactly(value: float) -> None:
    assert json.loads(storage.json_text({"x": value}))["x"] == value
    narrow = np.float32(value) if abs(value) < 3e38 else np.float32(0.0)
    assert np.float32(json.loads(storage.json_text([narrow]))[0]) == narrow


def test_plain_converts_what_runs_record() -> None:
    data = {
        1: np.int64(3),
        "array": np.array([[1.5, math.nan]], dtype=np.float32),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "none": None,
        "pair": (1, math.inf),
        "double": np.float64(0.1),
    }
    assert storage.plain(data) == {
        "1": 3,
        "array": [[1.5, None]],
        "flag": True,
        "path": "a/b",
        "none": None,
        "pair": [1, None],
        "double": 0.1,
    }
    assert type(storage.plain(np.float64(0.1))) is float
    with pytest.raises(TypeError, match="object"):
        storage.plain(object())
