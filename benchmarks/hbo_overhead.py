"""What HBO's probes cost in CPU time, and how well cheap ones rank sources and strata.

    python benchmarks/hbo_overhead.py CONFIG [KEY=VALUE ...] [--points 6] [--every 50] [--json]

A model is trained on batches of 16 rows, sources alike. At every point of the run each probe is
taken and timed; its cost is its CPU time over that of the 200 optimiser steps between two updates
of HBO's actors. Exact probes read as many rows per stratum as the method: 8 for the global level
(32 per source with four strata), 16 for the local one. Rank correlations are Spearman's with an
exact probe, over sources (or over the strata of each source), averaged over points; an exact probe
on other rows shows what there is to agree with.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from support.common import parse

from mixgym.envs.arrays import FloatArray
from mixgym.envs.build import build_environment, row_world
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep, TrainReport
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.measuring.probe_book import training_loss_ratio
from mixgym.envs.packing.packers import best_fit_decreasing
from mixgym.trainer.config import RunConfig, load_config
from mixgym.trainer.runs.tables import number, show, table

BATCH = 16  # rows in an optimiser step
PERIOD = 200  # optimiser steps between two updates of the actors
EXAMPLES, BATCHED, LOCAL = "gradient_norm_examples", "gradient_norm", "perplexity_ratio"
FREE = "training_loss_ratio"


@dataclass(frozen=True)
class Reading:
    """A probe, over so many rows per stratum, drawn by a seed."""

    probe: str
    rows: int
    seed: int = 0

    @property
    def name(self) -> str:
        """What the table calls it."""
        rows = f", {self.rows} {'other ' if self.seed else ''}rows" if self.rows else ""
        return self.probe + rows


EXACT = {"source": [Reading(EXAMPLES, 8), Reading(BATCHED, 8)], "stratum": [Reading(LOCAL, 16)]}
"""By level: of the global one what the released code measures, and equation 7 of the paper."""

CHEAP = Reading(f"{EXAMPLES}_last", 4)
READINGS = {
    "source": [
        *EXACT["source"],
        Reading(EXAMPLES, 8, seed=1),
        Reading(BATCHED, 8, seed=1),
        Reading(f"{EXAMPLES}_last", 8),
        CHEAP,
        Reading(f"{EXAMPLES}_last", 2),
        Reading(f"{BATCHED}_last", 8),
    ],
    "stratum": [*EXACT["stratum"], Reading(LOCAL, 16, seed=1), Reading(FREE, 0)],
}
WAYS = {
    "released code": (EXACT["source"][0], EXACT["stratum"][0]),
    "paper": (EXACT["source"][1], EXACT["stratum"][0]),
    "cheap": (CHEAP, READINGS["stratum"][-1]),
}
"""What each way of running HBO measures at an update: (global, local)."""


@dataclass
class Seen:
    """What was measured: per reading a value per point, and CPU seconds per point."""

    values: dict[Reading, list[FloatArray]]
    seconds: dict[Reading, list[float]]
    steps: list[float]


def batches(learner: CausalLM, steps: int, rng: np.random.Generator) -> IntervalPlan:
    """Steps of 16 rows each, every source equally likely, rows of a source too."""
    trained = [k for k, s in enumerate(learner.sources) if len(s.splits["train"])]
    found, totals = [], np.zeros((3, *learner.shape), np.int64)
    for _ in range(steps):
        rows = []
        for k in rng.choice(trained, BATCH):
            row = int(rng.integers(len(learner.sources[k].splits["train"])))
            rows.append((int(k), int(learner.sources[k].strata["train"][row]), row))
        found.append(packed(learner, np.array(rows), totals))
    world = row_world(RunConfig(), learner.sources, learner)
    return IntervalPlan(world.prior, tuple(found), *totals)


def packed(learner: CausalLM, rows: Any, totals: Any) -> tuple[Pack, ...]:
    """One step's packs; counts are added to ``totals``."""
    splits = [source.splits["train"] for source in learner.sources]
    lengths = np.array([splits[k].lengths[i] for k, _, i in rows])
    supervised = np.array([splits[k].supervised[i] for k, _, i in rows])
    for index, amount in enumerate((np.ones_like(lengths), lengths, supervised)):
        np.add.at(totals[index], (rows[:, 0], rows[:, 1]), amount)
    capacity = learner._max_length
    groups = best_fit_decreasing(lengths, capacity)
    return tuple(Pack(rows[group], lengths[group], capacity) for group in groups)


def measure(config: RunConfig, points: int, every: int) -> Seen:
    """Train, and take every reading at every point."""
    learner = build_environment(config).world.learner
    assert isinstance(learner, CausalLM)
    readings = [reading for level in READINGS.values() for reading in level]
    probers = {reading: prober(learner, reading) for reading in readings}
    start = learner.evaluate("reward").nll
    seen = Seen({r: [] for r in readings}, {r: [] for r in readings}, [])
    rng = np.random.default_rng(config.seed)
    for point in range(points):
        plan = batches(learner, every, rng)
        clock = time.process_time()
        report = learner.train(plan, PlainStep(), point / points)
        seen.steps.append((time.process_time() - clock) / every)
        weights = learner.model.state_dict()
        for reading, other in probers.items():
            other.model.load_state_dict(weights)
            clock = time.process_time()
            seen.values[reading].append(value(reading, other, report, start))
            seen.seconds[reading].append(time.process_time() - clock)
    return seen


def prober(learner: CausalLM, reading: Reading) -> CausalLM:
    """A copy that reads its own rows; they are laid out, and the start is measured."""
    other = learner.fork()
    other.probes = other.make_probes(max(reading.rows, 1), reading.seed)
    if reading.probe != FREE:
        other.begin_probes([LOCAL])
    return other


def value(reading: Reading, other: CausalLM, report: TrainReport, start: FloatArray) -> FloatArray:
    """What a reading finds."""
    if reading.probe == FREE:
        return training_loss_ratio(report.nll, start)
    return other.probe(reading.probe).values


def spearman(a: FloatArray, b: FloatArray) -> float:
    """Rank correlation over entries that both have; NaN below three."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return float("nan")
    ranks = [np.argsort(np.argsort(values[known])).astype(np.float64) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def agreement(a: Sequence[FloatArray], b: Sequence[FloatArray]) -> tuple[float, float]:
    """(mean, lowest) rank correlation, over sources, or over the strata of each source."""
    found = [
        spearman(x, y)
        for left, right in zip(a, b, strict=True)
        for x, y in zip(np.atleast_2d(left), np.atleast_2d(right), strict=True)
    ]
    known = [value for value in found if np.isfinite(value)]
    return (float(np.mean(known)), float(min(known))) if known else (float("nan"),) * 2


def report_of(seen: Seen) -> dict[str, Any]:
    """The numbers that are printed."""
    update = PERIOD * float(np.mean(seen.steps))
    cost = {reading: float(np.mean(seconds)) for reading, seconds in seen.seconds.items()}
    levels = {
        level: [
            {
                "probe": reading.name,
                "cpu_seconds": cost[reading],
                "share": cost[reading] / update,
                "ranks": [
                    agreement(seen.values[reading], seen.values[exact]) for exact in EXACT[level]
                ],
            }
            for reading in readings
        ]
        for level, readings in READINGS.items()
    }
    ways = {
        way: {
            "probes": " + ".join(reading.name for reading in both),
            "share": sum(cost[reading] for reading in both) / update,
        }
        for way, both in WAYS.items()
    }
    return {"step_cpu_seconds": float(np.mean(seen.steps)), "levels": levels, "ways": ways}


def tables(report: dict[str, Any]) -> list[Any]:
    """What is printed for people."""
    found: list[Any] = [
        f"{number(report['step_cpu_seconds'], 3)} CPU-seconds per step of {BATCH} rows"
    ]
    for level, rows in report["levels"].items():
        ranks = [f"ranks as {exact.name}" for exact in EXACT[level]]
        lines = [
            [
                row["probe"],
                f"{row['cpu_seconds']:.2f}",
                f"{100 * row['share']:.2f} %",
                *(f"{mean:.2f} ({low:.2f})" for mean, low in row["ranks"]),
            ]
            for row in rows
        ]
        title = f"{level} level: share of {PERIOD} steps; rank correlation, mean (lowest)"
        found.append(table(title, ["probe", "CPU s", "share", *ranks], lines))
    ways = [
        [way, one["probes"], f"{100 * one['share']:.2f} %"] for way, one in report["ways"].items()
    ]
    return [*found, table("an update of both levels", ["HBO", "probes", "CPU time"], ways)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="YAML; generated sources without one")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--points", type=int, default=6, help="times that probes are taken")
    parser.add_argument("--every", type=int, default=50, help="optimiser steps between them")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, points=1, every=4)
    torch.set_num_threads(1)
    steps = arguments.points * arguments.every
    config = load_config(arguments.config, [*arguments.overrides, f"training.steps={steps}"])
    report = report_of(measure(config, arguments.points, arguments.every))
    if arguments.json:
        print(json.dumps(report))
        return
    show(*tables(report))


if __name__ == "__main__":
    main()
