"""Runs a function in several processes that talk over gloo, for tests of what they do together."""

import contextlib
import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_SECONDS = 240  # a deadlock ends here


@contextlib.contextmanager
def _environment(rank: int, world: int, port: int) -> Iterator[None]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    yield


def _work(rank: int, world: int, port: int, task: Callable[..., Any], rest: Any, out: Any) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        with _environment(rank, world, port):
            torch.distributed.init_process_group("gloo")
            out.put((rank, task(*rest), None))
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except BaseException:  # whatever it was, the parent has to hear of it
        out.put((rank, None, traceback.format_exc()))


def run_ranks(world: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``task(*arguments)`` returns on each of ``world`` ranks; they are ended in any case."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    started = [
        context.Process(target=_work, args=(rank, world, port, task, arguments, out))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    try:
        answers = {}
        for _ in started:
            rank, answer, failure = out.get(timeout=PATIENCE_SECONDS)
            if failure is not None:
                raise AssertionError(f"rank {rank} of {world}:\n{failure}")
            answers[rank] = answer
    except queue.Empty:
        raise AssertionError(f"{world} ranks gave no answer: they wait for each other") from None
    finally:
        for process in started:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return [answers[rank] for rank in range(world)]
