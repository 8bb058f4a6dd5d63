"""Packing on real rows: supervised tokens per CPU second, and waiting on two processes.

    python benchmarks/packing.py [--model 0.1m] [--rows N] [--draw sources|rows]
                                 [--length TOKENS] [--repeats N] [--json]

Every method trains the same rows once, in steps of the same size, with the same model, AdamW and
clipping, on one thread, in as many forward passes as a step has packs of the longest length, each
in a process of its own that was started anew; repeats take turns. CPU time from rows in memory to
updated weights: on a machine that is shared, wall time says nothing.

    padded       batches of documents at random, padded, with an attention mask
    sorted       the same, sorted by length and shuffled by batch
    trl          TRL's SFTTrainer with packing=bfd, gradient checkpointing off (if it is installed)
    packing      this project's loop, best fit decreasing, packs of one length at random
    balanced     the same, packs sorted by attention work
    hbp          the same with a second group of packs, an eighth as long, and greedy fill

Waiting: two processes train the same plans over gloo, and each notes the CPU seconds of every
forward and backward pass. The process that is done first would wait: the share of their time that
is spent so, and the seconds until both are done, if they meet after every pass (sharded weights),
and if they meet after every optimiser step (as this project's ranks do). Repeats train the same
passes; the median of each pass leaves out most of what other programs do to one of them.

Rows: of ``$MIXGYM_DATA/multitask``, documents of up to --length tokens among them (without it, the
embedded sources). ``--draw sources`` draws as many tokens of every source, which gives the lengths
a long tail; ``--draw rows`` draws rows as they lie.
"""

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse, prepare_text, save_for_workers
from support.packing_methods import PLANNED, Job

METHODS = ("padded", "sorted", "trl", *PLANNED)
SKIPPED = ("noise",)


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Encode the text once, draw rows, and save what every worker needs."""
    sources = prepare_text(folder, arguments.model, arguments.length, SKIPPED)
    save_for_workers(folder / "data.pkl", (sources, draw(sources, arguments.rows, arguments.draw)))


def draw(sources: Sequence[Any], count: int, how: str) -> Any:
    """int64[n, 3], (source, stratum, row) of training rows, without repeats."""
    where, weights = [], []
    for k, source in enumerate(sources):
        rows = source.splits["train"]
        n = len(rows)
        where.append(np.stack([np.full(n, k), np.zeros(n, np.int64), np.arange(n)], axis=1))
        weights.append(np.full(n, 1 / rows.lengths.sum() if how == "sources" else 1.0))
    found, weight = np.concatenate(where), np.concatenate(weights)
    chosen = np.random.default_rng(0).choice(
        len(found), min(count, len(found)), replace=False, p=weight / weight.sum()
    )
    return found[chosen]


def start(job: dict[str, Any], **ranks: str) -> "subprocess.Popen[str]":
    """A worker; ``ranks`` are variables of its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.packing_methods", json.dumps(job)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **ranks},
    )


def answer_of(worker: "subprocess.Popen[str]") -> Any:
    """The worker's answer."""
    out, problems = worker.communicate(timeout=3600)
    if worker.returncode:
        raise SystemExit(f"a worker failed ({worker.returncode}):\n{problems[-2000:]}")
    return json.loads(out.strip().splitlines()[-1])


def two_ranks(job: dict[str, Any]) -> list[Any]:
    """float64[ranks, passes] of every step, CPU seconds."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    workers = [
        start(
            job | {"asked": "passes"},
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]
    ranks = [answer_of(worker) for worker in workers]
    return [lined_up([rank[step] for rank in ranks]) for step in range(len(ranks[0]))]


def lined_up(seconds: Sequence[list[float]]) -> Any:
    """float64[ranks, passes]; a rank without a pack in the last pass is idle."""
    most = max(map(len, seconds))
    return np.array([[*rank, *[0.0] * (most - len(rank))] for rank in seconds])


def waiting(steps: Sequence[Any]) -> dict[str, tuple[float, float]]:
    """(share of waiting, seconds), if ranks meet after every pass, and after every step.

    Args:
        steps: float64[ranks, passes] of every step.

    >>> waiting([np.array([[1.0, 3.0], [3.0, 1.0]])])
    {'pass': (0.33333333333333337, 6.0), 'step': (0.0, 4.0)}
    """
    by_pass = np.concatenate(steps, axis=1)
    by_step = np.stack([step.sum(1) for step in steps], axis=1)
    return {
        name: (float(1 - found.mean(0).sum() / found.max(0).sum()), float(found.max(0).sum()))
        for name, found in (("pass", by_pass), ("step", by_step))
    }


def waits_of(repeats: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Waiting by the median of every pass over the repeats, and of every repeat."""
    middle = [np.median(np.stack(found), axis=0) for found in zip(*repeats, strict=True)]
    every = [waiting(steps) for steps in repeats]
    return {
        "steps": len(middle),
        "passes": sum(step.shape[1] for step in middle),
        "median": waiting(middle),
        "repeats": {key: [found[key] for found in every] for key in every[0]},
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All methods in turn, again and again."""
    asked = {"folder": str(folder), "asked": "speed"}
    asked |= {name: getattr(arguments, name) for name in ("length", "packs", "batch")}
    methods = arguments.methods.split(",") if arguments.methods else list(METHODS)
    if not importlib.util.find_spec("trl"):
        methods = [method for method in methods if method != "trl"]
    job = Job(asked)
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    passes: dict[str, list[Any]] = {method: [] for method in methods if method in PLANNED}
    for _ in range(arguments.repeats):
        for method in methods:
            seconds[method].append(answer_of(start(asked | {"method": method})))
        for method, found in passes.items():
            found.append(two_ranks(asked | {"method": method}))
    quantiles = np.quantile(job.lengths, [0.5, 0.9, 0.99]).astype(int).tolist()
    return {
        "model": arguments.model,
        "rows": len(job.rows),
        "tokens": int(job.lengths.sum()),
        "supervised": job.supervised,
        "lengths": {"p50": quantiles[0], "p90": quantiles[1], "p99": quantiles[2]},
        "tail": float(job.lengths[job.lengths > arguments.length // 2].sum() / job.lengths.sum()),
        "rate": {m: [job.supervised / s for s in found] for m, found in seconds.items()},
        "waiting": {method: waits_of(found) for method, found in passes.items()},
    }


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    lengths = report["lengths"]
    print(
        f"{report['model']}, {report['rows']} rows, {report['tokens']:,} tokens, "
        f"{report['supervised']:,} supervised; lengths p50 {lengths['p50']}, p90 {lengths['p90']}, "
        f"p99 {lengths['p99']}; {100 * report['tail']:.0f}% of the tokens in documents of more "
        "than half a pack"
    )
    base = report["rate"].get("packing")
    for method, rates in report["rate"].items():
        line = f"{method:<10} {_middle(rates, ',.0f')} supervised tokens per CPU s"
        if base:
            ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
            line += f"; {_middle(ratios, '.2f')} x packing"
        print(line)
    for method, found in report["waiting"].items():
        parts = [
            f"{100 * share:.1f}% ({_range([one for one, _ in found['repeats'][key]])}), done after "
            f"{seconds:.2f} s, meeting after every {key}"
            for key, (share, seconds) in found["median"].items()
        ]
        print(
            f"waiting of two processes, {method:<9} {'; '.join(parts)}; {found['passes']} passes "
            f"in {found['steps']} steps"
        )


def _middle(values: Sequence[float], form: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def _range(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="0.1m")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--draw", choices=["sources", "rows"], default="sources")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--packs", type=int, default=4, help="packs of --length in a step")
    parser.add_argument("--batch", type=int, default=8, help="documents in a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", help=f"some of {','.join(METHODS)}")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, rows=20, length=256, repeats=1, methods="packing,balanced")
    with tempfile.TemporaryDirectory() as name:
        prepare(arguments, Path(name))
        report = measure(arguments, Path(name))
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
