"""Packing: fill and CPU time beside TRL's pack_dataset and the windows that other tools use.

    python benchmarks/planner.py [--documents N] [--capacity TOKENS] [--trl-documents N] [--json]

Lengths are those of the paper-like mix (chat, and 0.2% of the documents up to 128K). A window is
how many documents a packer sees at a time: TRL's `pack_dataset` and LLaMA-Factory pack every 1,000
rows by themselves unless told otherwise, ms-swift carries the last pack of a window over, axolotl
takes 100,000; this project packs all of them. TRL is optional (`pip install mixgym[bench]`), and is
given fewer documents, since it has to have their tokens as well. The last table is whole plans:
groups, packs, greedy fill, balance and schedule, with the memory that they take.
"""

import argparse
import importlib.util
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from support.common import parse

from mixgym.envs.arrays import IntArray
from mixgym.envs.packing.grouping.groups import Cluster, Group
from mixgym.envs.packing.packed import Packing
from mixgym.envs.packing.packers import PACKERS, best_fit_decreasing
from mixgym.envs.packing.planner import PlanConfig, make_plan
from mixgym.trainer.simulate.mixes import paper_like

K = 1024


def in_windows(lengths: IntArray, capacity: int, window: int) -> int:
    """Packs, if every window of documents is packed by itself."""
    parts = range(0, len(lengths), window)
    return sum(len(best_fit_decreasing(lengths[i : i + window], capacity)) for i in parts)


def with_carry(lengths: IntArray, capacity: int, window: int) -> int:
    """Packs, if the documents of each window's emptiest pack go on into the next window."""
    packs, carried = 0, np.zeros(0, np.int64)
    for first in range(0, len(lengths), window):
        here = np.concatenate([carried, lengths[first : first + window]])
        packing = best_fit_decreasing(here, capacity)
        last = int(np.argmin(packing.sums(here)))
        carried = here[packing[last]]
        packs += len(packing) - 1
    return packs + (len(carried) > 0)


def trl_packs(lengths: IntArray, capacity: int, window: int | None) -> tuple[int, float]:
    """Packs of TRL's ``pack_dataset``, and its CPU seconds; ``window`` None: its own."""
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    rows = [np.zeros(n, np.int32) for n in lengths]
    data = Dataset.from_dict({"input_ids": rows})
    options = {} if window is None else {"map_kwargs": {"batch_size": window}}
    start = time.process_time()
    packed = pack_dataset(data, capacity, "bfd", **options)
    return len(packed), time.process_time() - start


def timed(run: Callable[[], int]) -> tuple[int, float]:
    """The number of packs, and CPU seconds."""
    start = time.process_time()
    packs = run()
    return packs, time.process_time() - start


def row(name: str, lengths: IntArray, capacity: int, packs: int, seconds: float) -> dict[str, Any]:
    """A line of the table."""
    bound = -(-int(lengths.sum()) // capacity)
    return {
        "packer": name,
        "documents": len(lengths),
        "packs": packs,
        "bound": bound,
        "fill": float(lengths.sum()) / (packs * capacity),
        "cpu_seconds": seconds,
    }


def packer_rows(lengths: IntArray, capacity: int) -> list[dict[str, Any]]:
    """Our packers on everything, and best fit in the windows of others."""

    def packing(name: str) -> Packing:
        return PACKERS[name].pack(lengths, capacity, np.random.default_rng(0))

    rows = [
        row(name, lengths, capacity, *timed(lambda name=name: len(packing(name))))  # type: ignore[misc]
        for name in PACKERS
    ]
    for name, run in (
        ("windows of 1,000 (TRL, LLaMA-Factory)", lambda: in_windows(lengths, capacity, 1000)),
        ("windows of 1,000 with carry (ms-swift)", lambda: with_carry(lengths, capacity, 1000)),
        ("windows of 100,000 (axolotl)", lambda: in_windows(lengths, capacity, 100_000)),
    ):
        rows.append(row(name, lengths, capacity, *timed(run)))
    return rows


def plan_row(documents: int) -> dict[str, Any]:
    """Seconds and memory of a whole plan."""
    lengths = paper_like(documents, np.random.default_rng(0))
    groups = (Group(16 * K, 1, 28), Group(128 * K, 8, 28))
    config = PlanConfig(groups, Cluster(32, 512 * K))
    start = time.process_time()
    plan = make_plan(lengths, config, 0)
    seconds = time.process_time() - start
    tracemalloc.start()
    make_plan(lengths, config, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "documents": documents,
        "packs": len(plan.packing),
        "steps": len(plan.steps),
        "cpu_seconds": seconds,
        "bytes_per_document": peak / documents,
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--capacity", type=int, default=128 * K)
    parser.add_argument("--trl-documents", type=int, default=47_000)
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, documents=20_000, trl_documents=2_000)
    lengths = paper_like(arguments.documents, np.random.default_rng(0))
    lengths = np.minimum(lengths, arguments.capacity)
    rows = packer_rows(lengths, arguments.capacity)
    few = lengths[: arguments.trl_documents]
    rows.append(
        row(
            "best_fit_decreasing",
            few,
            arguments.capacity,
            *timed(lambda: len(best_fit_decreasing(few, arguments.capacity))),
        )
    )
    if importlib.util.find_spec("trl"):
        for name, window in (("TRL bfd", None), ("TRL bfd, one window", len(few))):
            rows.append(
                row(name, few, arguments.capacity, *trl_packs(few, arguments.capacity, window))
            )
    plans = [plan_row(arguments.documents // 4), plan_row(arguments.documents)]
    if arguments.json:
        print(json.dumps({"packers": rows, "plans": plans}, indent=2))
        return
    print(f"capacity {arguments.capacity:,}")
    print(f"{'packer':<40} {'documents':>10} {'packs':>8} {'least':>8} {'fill':>7} {'CPU s':>7}")
    for r in rows:
        print(
            f"{r['packer']:<40} {r['documents']:>10,} {r['packs']:>8,} {r['bound']:>8,} "
            f"{r['fill']:>7.4f} {r['cpu_seconds']:>7.3f}"
        )
    print("\nwhole plans: groups of 16K and 128K")
    for p in plans:
        print(
            f"{p['documents']:>10,} documents, {p['packs']:,} packs, {p['steps']:,} steps: "
            f"{p['cpu_seconds']:.2f} CPU s, {p['bytes_per_document']:.0f} bytes a document at most"
        )


if __name__ == "__main__":
    main()
