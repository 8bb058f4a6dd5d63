"""A run folder refuses to be overwritten, survives kills, and never holds a half checkpoint."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mixgym.envs import storage
from mixgym.envs.errors import RunError
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.runs.folder import RunFolder


class _DiedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "on_failpoint", None)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "deep" / "run", load_config(None, ["seed=7"]))


def save(run: RunFolder, decision: int) -> Path:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(f"weights {decision}")

    return run.save_checkpoint(decision, write)


def checkpoints(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def test_create_then_open(run: RunFolder) -> None:
    again = RunFolder.open(run.path)
    assert again.config == run.config
    assert again.config.seed == 7
    assert again.latest_checkpoint() is None
    assert again.read_decisions() == []
    assert not again.finished


def test_create_refuses_what_is_there(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds a run already; pass --resume .* another folder"):
        RunFolder.create(run.path, RunConfig())
    with pytest.raises(RunError, match=r"is not empty \(it holds run\) and not a run"):
        RunFolder.create(run.path.parent, RunConfig())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        RunFolder.create(tmp_path / "file", RunConfig())
    with pytest.raises(RunError, match=r"holds no run \(no config.yaml\)"):
        RunFolder.open(tmp_path)


def test_create_after_a_kill_within_create(tmp_path: Path) -> None:
    (tmp_path / ".tmp-config.yaml-1-2").write_text("torn")
    RunFolder.create(tmp_path, RunConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_decisions_read_back_exactly(run: RunFolder) -> None:
    run.append_decision(
        {"decision": 1, "loss": np.float32(0.1), "mixture": {"é": 1 / 3}, "strata": np.eye(2)}
    )
    run.append_decision({"decision": 2, "loss": math.nan})
    assert run.read_decisions() == [
        {
            "decision": 1,
            "loss": float(np.float32(0.1)),
            "mixture": {"é": 1 / 3},
            "strata": [[1.0, 0.0], [0.0, 1.0]],
        },
        {"decision": 2, "loss": None},
    ]


def test_cut_drops_later_and_torn_lines(run: RunFolder) -> None:
    for decision in range(1, 6):
        run.append_decision({"decision": decision})
    with (run.path / "decisions.jsonl").open("a") as file:
        file.write('{"decision": 6, "lo')
    assert [record["decision"] for record in run.read_decisions()] == [1, 2, 3, 4, 5]
    run.cut_decisions(5)
    assert (run.path / "decisions.jsonl").read_text().count("\n") == 5
    run.append_decision({"decision": 6})
    run.cut_decisions(3)
    assert [record["decision"] for record in run.read_decisions()] == [1, 2, 3]
    run.cut_decisions(0)
    assert run.read_decisions() == []


def test_cut_names_what_is_lost_before_the_checkpoint(run: RunFolder) -> None:
    run.append_decision({"decision": 1})
    with pytest.raises(RunError, match=r"decisions\.jsonl:2: is missing, .* at decision 2"):
        run.cut_decisions(2)
    path = run.path / "decisions.jsonl"
    with path.open("a") as file:
        file.write('{"decision": 2')
    with pytest.raises(RunError, match=r"decisions\.jsonl:2: is torn, .* at decision 2"):
        run.cut_decisions(2)
    path.write_text('{"decision": 1\n{"decision": 2}\n[3]\n')
    with pytest.raises(RunError, match=r"decisions\.jsonl:1: not JSON"):
        run.cut_decisions(2)
    with pytest.raises(RunError, match=r"decisions\.jsonl:1: not JSON"):
        run.read_decisions()
    path.write_text("[3]\n")
    with pytest.raises(RunError, match=r"decisions\.jsonl:1: \[3\] is not a decision"):
        run.read_decisions()


def test_the_newest_checkpoints_are_kept(run: RunFolder) -> None:
    for decision in (2, 10, 9, 11):
        save(run, decision)
    assert checkpoints(run) == ["step-11", "step-9"]  # 10 was beyond 9 when 9 was saved
    latest = run.latest_checkpoint()
    assert latest == (11, run.path / "checkpoints" / "step-11")
    assert (latest[1] / "model" / "weights").read_text() == "weights 11"


def test_incomplete_checkpoints_are_passed_over(run: RunFolder) -> None:
    save(run, 1)
    (save(run, 2) / "model" / "weights").write_text("half")
    (run.path / "checkpoints" / "step-3").mkdir()
    assert run.latest_checkpoint() == (1, run.path / "checkpoints" / "step-1")
    shutil.rmtree(run.path / "checkpoints" / "step-1" / "model")
    assert run.latest_checkpoint() is None


def test_a_failing_writer_leaves_nothing(run: RunFolder) -> None:
    def fail(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise _DiedError

    with pytest.raises(_DiedError):
        run.save_checkpoint(1, fail)
    assert checkpoints(run) == []


def test_checkpoint_is_old_or_new_at_every_failpoint(run: RunFolder) -> None:
    """Two checkpoints stand, a third is saved over what may be there, and the first is pruned."""
    names: list[str] = []
    save(run, 1)
    save(run, 2)
    storage.on_failpoint = names.append
    save(run, 3)
    storage.on_failpoint = None
    assert names[0] == "folder:before"
    assert names[-1] == "remove:after"
    for index in range(len(names)):
        shutil.rmtree(run.path / "checkpoints")
        for decision in (1, 2):
            save(run, decision)
        reached: list[str] = []

        def die(name: str, reached: list[str] = reached, index: int = index) -> None:
            reached.append(name)
            if len(reached) == index + 1:
                raise _DiedError(name)

        storage.on_failpoint = die
        with pytest.raises(_DiedError):
            save(run, 3)
        storage.on_failpoint = None
        again = RunFolder.open(run.path)
        assert all(name.startswith("step-") for name in checkpoints(again))
        latest = again.latest_checkpoint()
        assert latest is not None
        assert latest[0] == (3 if "folder-rename:after" in names[: index + 1] else 2)
        assert (latest[1] / "model" / "weights").read_text() == f"weights {latest[0]}"
        save(again, 3)
        assert checkpoints(again) == ["step-2", "step-3"]


def test_summary_tells_whether_the_run_finished(run: RunFolder) -> None:
    run.write_summary({"status": "failed", "loss": math.nan})
    assert run.read_summary() == {"status": "failed", "loss": None}
    assert not run.finished
    run.write_summary({"status": "finished"})
    assert run.finished
    assert json.loads((run.path / "summary.json").read_text()) == {"status": "finished"}
