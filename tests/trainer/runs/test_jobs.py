"""Jobs in several processes end as in one; failures and deaths stop nobody; Ctrl-C stops all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mixgym.envs.errors import RunError
from mixgym.trainer.runs.jobs import Job, Outcome, report_progress, run_jobs, values_of

# Jobs are found by importing them, in this process and in fresh ones.
WORK = """
import os, signal, time
from pathlib import Path
from mixgym.envs.errors import ConfigError

def square(number):
    return number * number

def place(delay=0.0):
    time.sleep(delay)
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")

def misuse():
    raise ConfigError("number=3: give another")

def stumble():
    return 1 / 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def leave():
    raise SystemExit(3)

def unsendable():
    return lambda: None

def linger(folder, name):
    draft = Path(folder).with_name(name)
    draft.write_text(str(os.getpid()))
    draft.rename(Path(folder, name))
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delitem(sys.modules, "some_work", raising=False)


def job(name: str, **arguments: Any) -> Job:
    return Job(f"{name} {arguments}", f"some_work:{name}", arguments)


def told(outcomes: list[Outcome]) -> list[tuple[str, Any, str | None]]:
    return [(outcome.name, outcome.value, outcome.error) for outcome in outcomes]


def test_several_processes_give_what_one_gives_in_order() -> None:
    jobs = [*(job("square", number=n) for n in range(5)), job("misuse"), job("stumble")]
    seen: list[tuple[str, int, int]] = []
    alone = run_jobs(jobs)
    together = run_jobs(
        jobs, processes=2, progress=lambda outcome, *counts: seen.append((outcome.name, *counts))
    )
    assert told(alone) == told(together)
    assert [outcome.value for outcome in alone] == [0, 1, 4, 9, 16, None, None]
    assert alone[5].error == "number=3: give another"
    assert alone[6].error == "ZeroDivisionError: division by zero"
    assert "stumble" in alone[6].details
    assert not alone[5].details
    assert sorted(name for name, *_ in seen) == sorted(one.name for one in jobs)
    assert [done for _, done, _ in seen] == list(range(1, 8))
    assert {total for *_, total in seen} == {7}


def test_each_process_has_one_thread_and_this_one_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    places = values_of(run_jobs([job("place", delay=0.2)] * 2, processes=2), "")
    assert {(omp, mkl) for _, omp, mkl in places} == {("1", "1")}
    assert os.getpid() not in {process for process, *_ in places}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_process_that_dies_fails_its_job_only() -> None:
    jobs = [job("die"), job("leave"), job("unsendable"), *(job("square", number=n) for n in (2, 3))]
    outcomes = run_jobs(jobs, processes=2)
    assert [outcome.value for outcome in outcomes] == [None, None, None, 4, 9]
    assert outcomes[0].error == "its process ended with code -9"
    assert outcomes[1].error == "its process ended with code 3"
    assert "cannot be sent" in str(outcomes[2].error)


def test_failures_are_worded_together(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = run_jobs([job("square", number=2), job("misuse"), job("stumble")])
    with pytest.raises(RunError) as caught:
        values_of(outcomes, "mend it")
    first, second, last = str(caught.value).splitlines()
    assert first == "misuse {}: number=3: give another"
    assert second == "stumble {}: ZeroDivisionError: division by zero"
    assert last == "2 of 3 failed; mend it"
    for index, outcome in enumerate(outcomes, 1):
        report_progress(outcome, index, 3)
    said = capsys.readouterr().err
    assert "[1/3] square {'number': 2}: done (0 s)\n" in said
    assert "[2/3] misuse {}: FAILED: number=3: give another" in said
    assert "Traceback" in said


def test_no_jobs_are_no_work() -> None:
    assert run_jobs([], processes=3) == []


def test_an_interrupt_here_is_passed_on() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("square", number=1)] * 4, processes=2, progress=interrupt)


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "from mixgym.trainer.runs.jobs import Job, run_jobs\n"
        "if __name__ == '__main__':\n"
        "    run_jobs([Job(n, 'some_work:linger', {'folder': "
        f"{str(started)!r}, 'name': n}}) for n in 'abc'], processes=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(list(started.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    _, said = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 1)
    assert said.count("KeyboardInterrupt") == 1
    assert sorted(path.name for path in started.iterdir()) == ["a", "b"]
    for path in started.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
