"""Independent jobs on several processes of this machine: the same results as in one.

A job is the place of a function and plain arguments. With one process they run here, one after the
other; with more, each worker is a fresh interpreter (spawn) with one thread for torch, and takes
the next job when it is done. A job that fails, or whose process dies, is reported and stops no
other. Ctrl-C ends the workers: what jobs write is atomic, so that they can be done again.
"""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from mixgym.envs.errors import MixgymError, RunError

_GRACE = 5.0  # seconds that a worker is given to end


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: what it is called in reports.
        function: ``module:name`` of what is called; it must be importable.
        arguments: by name; they are pickled where there are several processes.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of the job.
        value: what it returned; None where it failed.
        error: one line on why it failed; None where it did not.
        details: the traceback of a failure that is no fault of the input; empty otherwise.
        seconds: how long it took.
    """

    name: str
    value: Any = None
    error: str | None = None
    details: str = ""
    seconds: float = 0.0


Progress = Callable[[Outcome, int, int], None]
"""Called with every outcome as it comes in, how many there are by then, and of how many."""


def run_jobs(
    jobs: Sequence[Job], *, processes: int = 1, progress: Progress | None = None
) -> list[Outcome]:
    """Do every job.

    Args:
        jobs: in any order: none may need another's result.
        processes: at most so many at a time; 1: in this process.
        progress: called as outcomes come in.

    Returns:
        The outcomes in the order of ``jobs``.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after all workers have ended.
    """
    count = min(processes, len(jobs))
    pairs = _here(jobs) if count <= 1 else _in_workers(jobs, count)
    found: dict[int, Outcome] = {}
    with contextlib.closing(pairs):
        for index, outcome in pairs:
            found[index] = outcome
            if progress is not None:
                progress(outcome, len(found), len(jobs))
    return [found[index] for index in range(len(jobs))]


def report_progress(outcome: Outcome, done: int, total: int) -> None:
    """A line on standard error for every job that ended."""
    how = "done" if outcome.error is None else f"FAILED: {outcome.error}"
    sys.stderr.write(f"[{done}/{total}] {outcome.name}: {how} ({outcome.seconds:.0f} s)\n")
    if outcome.details:
        sys.stderr.write(outcome.details)


def values_of(outcomes: Sequence[Outcome], advice: str) -> list[Any]:
    """What all jobs returned.

    Args:
        outcomes: of :func:`run_jobs`.
        advice: what to do where jobs failed.

    Raises:
        RunError: naming every job that failed, and why.
    """
    failed = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    if failed:
        raise RunError("\n".join([*failed, f"{len(failed)} of {len(outcomes)} failed; {advice}"]))
    return [outcome.value for outcome in outcomes]


def done(job: Job) -> Outcome:
    """Do a job now, and catch what goes wrong in it."""
    start = time.perf_counter()
    try:
        module, _, name = job.function.partition(":")
        value = getattr(importlib.import_module(module), name)(**job.arguments)
    except MixgymError as error:
        return Outcome(job.name, error=str(error), seconds=time.perf_counter() - start)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        spent = time.perf_counter() - start
        return Outcome(job.name, error=said, details=traceback.format_exc(), seconds=spent)
    return Outcome(job.name, value, seconds=time.perf_counter() - start)


_Outcomes = Generator[tuple[int, Outcome], None, None]


def _here(jobs: Sequence[Job]) -> _Outcomes:
    for index, job in enumerate(jobs):
        yield index, done(job)


# --- several processes ----------------------------------------------------------------------------


class _Worker:
    """A process that does the jobs that it is sent."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # so that its death is the end of the pipe
        self.lost = False  # whether it will never answer again

    def send(self, index: int, job: Job) -> None:
        """Give it the job of that index."""
        self.index, self.job, self.start = index, job, time.perf_counter()
        self.pipe.send(job)

    def receive(self) -> Outcome:
        """The outcome of its job, also where it died on it."""
        try:
            outcome: Outcome = self.pipe.recv()
        except EOFError:
            self.lost = True
            self.process.join(_GRACE)
            died = f"its process ended with code {self.process.exitcode}"
            spent = time.perf_counter() - self.start
            return Outcome(self.job.name, error=died, seconds=spent)
        return outcome

    def end(self) -> None:
        """End it now."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _in_workers(jobs: Sequence[Job], count: int) -> _Outcomes:
    """Outcomes as they come in, with the indices of their jobs."""
    waiting = list(enumerate(jobs))[::-1]
    busy: dict[Any, _Worker] = {}
    try:
        for _ in range(count):
            worker = _Worker()
            busy[worker.pipe] = worker
            worker.send(*waiting.pop())
        while busy:
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]
                yield worker.index, worker.receive()
                if worker.lost or not waiting:
                    busy.pop(pipe).end()
                if waiting and worker.lost:  # another takes its place
                    worker = _Worker()
                    busy[worker.pipe] = worker
                if waiting:
                    worker.send(*waiting.pop())
    finally:
        for worker in busy.values():
            worker.end()


def _serve(pipe: Any) -> None:
    """What a worker does until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            outcome = done(pipe.recv())
            try:
                pipe.send(outcome)
            except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
                said = f"what it returned cannot be sent: {error}"
                pipe.send(Outcome(outcome.name, error=said, seconds=outcome.seconds))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries that a new process loads are to take one thread: its neighbours want theirs."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
