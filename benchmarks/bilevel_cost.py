"""What learning source weights costs: CPU time and peak memory beside plain fine-tuning.

    python benchmarks/bilevel_cost.py [--model 5m|smollm2|1m] [--steps N] [--repeats N] [--json]

Every variant runs in a process of its own, from the same weights, on the same packs; runs take
turns, so that a busy machine is busy for all, and medians are reported, as ratios to plain
fine-tuning. Time is CPU time of whole optimiser steps after two that are not counted. Memory is
the largest resident set of the process less what it was before the model was built: weights,
gradients, optimiser, second model and activations. A validation batch has as many packs as a
training batch (v = 1). The declared ratio counts passes; ``paired`` is 3 by construction.

Rows: $MIXGYM_DATA/multitask or the embedded sources; every supervised token counts, as in the
throughput benchmark.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse

SIZES = {"0.1m": (256, 4), "1m": (256, 4), "5m": (256, 2), "smollm2": (128, 2)}  # tokens, packs
LAYERS = {"0.1m": 2, "1m": 4, "5m": 5, "smollm2": 30}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "alignment": {"estimator": "alignment"},
    "alignment, forward mode": {"estimator": "alignment", "derivative": "forward"},
    "lookahead": {"estimator": "lookahead"},
    "lazy_pair": {"estimator": "lazy_pair"},
    "paired": {"estimator": "paired"},
    "paired, blocks": {
        "estimator": "paired", "blocks": 1, "keep_states": False, "outside_blocks": "frozen",
    },
    "paired, blocks, outside": {"estimator": "paired", "blocks": 1, "keep_states": False},
    "paired, full": {"estimator": "paired", "storage": "full"},
    "paired, low rank": {"estimator": "paired", "storage": "low_rank"},
    "paired, top": {"estimator": "paired", "storage": "top"},
    "central": {"estimator": "central"},
}  # fmt: skip
AIMS = {"alignment": (1.2, 1.1), "lookahead": (1.2, 1.25), "paired": (3.2, None)}
AIMS |= {"alignment, forward mode": (1.2, 1.1), "paired, blocks": (2.4, None)}


def sources_of() -> Any:
    """Real text if there is any."""
    root = os.environ.get("MIXGYM_DATA")
    if root is None:
        return "embedded"
    folders = sorted(path for path in (Path(root) / "multitask").iterdir() if path.is_dir())
    return {f.name: {"path": str(f)} for f in folders if f.name not in ("longcontext", "noise")}


def worker(model: str, variant: str, steps: int) -> dict[str, float]:
    """Train, and measure; runs in a process of its own."""
    from mixgym.envs.bilevel.bilevel_options import BilevelOptions
    from mixgym.envs.bilevel.rule import BilevelStep
    from mixgym.envs.build import load_corpus
    from mixgym.envs.interval_plan import Budget
    from mixgym.envs.learners.base import PlainStep, StepRule
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.envs.learners.models.loading import load_model
    from mixgym.envs.options import WorldOptions
    from mixgym.envs.packing.plane import PackedPlane
    from mixgym.envs.spaces.mixture import Mixture

    length, packs = SIZES[model]
    given = {
        "sources": sources_of(),
        "data": {"max_length": length, "strata": 1, "labels": "all"},
        "model": {"name": model},
        "training": {"steps": steps + 10, "packs": packs, "schedule": "constant"},
        "environment": {"step_rule": "bilevel"},
    }
    options = WorldOptions.model_validate(given)
    corpus = load_corpus(options)
    count = len(corpus.sources)
    plane = PackedPlane(
        corpus.sources, unit="supervised_tokens", capacity=length, packs=packs, seed=0
    )
    plan = plane.plan(Mixture(np.full(count, 1 / count), np.ones((count, 1))), Budget(steps + 10))
    before = resident()
    learner = CausalLM(
        lambda: load_model(options.model, length),
        corpus.tokenizer,
        corpus.sources,
        max_length=length,
        model_options=options.model,
        training=options.training,
        seed=0,
    )
    learner.trained._start = None  # a copy for quick resets, which is the same for all
    chosen = VARIANTS[variant]
    rule: StepRule = PlainStep()
    if chosen is not None:
        names = tuple(source.name for source in corpus.sources)
        rule = BilevelStep(BilevelOptions.model_validate(chosen), names, np.ones(count), 0)
    learner.model.train()
    for packs_ in plan.steps[:10]:  # one of every kind of step, and what is made at the first
        rule.step(learner.steps, packs_)
    begin = time.process_time()
    for packs_ in plan.steps[10 : 10 + steps]:
        rule.step(learner.steps, packs_)
    seconds = (time.process_time() - begin) / steps
    return {"seconds": seconds, "bytes": float(peak() - before)}


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most there were."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians by variant."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    for turn in range(arguments.repeats):
        for name in arguments.variants:
            words = ["--model", arguments.model, "--worker", name, "--steps", str(arguments.steps)]
            command = [sys.executable, __file__, *words]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{name}: {done.stderr}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"# {turn + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def declared(variant: str) -> float:
    """Passes, over those of plain fine-tuning."""
    from mixgym.envs.bilevel.bilevel_options import BilevelOptions
    from mixgym.envs.bilevel.two_model_estimators import make_estimator

    chosen = VARIANTS[variant]
    if chosen is None:
        return 1.0
    return make_estimator(BilevelOptions.model_validate(chosen)).cost()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="5m", choices=tuple(SIZES))
    parser.add_argument("--steps", type=int, default=20, help="timed steps; a multiple of 10")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", default=",,".join(VARIANTS), help="separated by ,,")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, model="0.1m", steps=10, repeats=1, variants="plain,,alignment")
    if arguments.worker:
        print(json.dumps(worker(arguments.model, arguments.worker, arguments.steps)))
        return
    arguments.variants = arguments.variants.split(",,")
    found = measure(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    plain = found["plain"]
    print(
        f"{arguments.model}: plain {plain['seconds']:.3f} CPU s, {plain['bytes'] / 2**20:.0f} MiB"
    )
    print(f"{'variant':<26}{'time':>7}{'declared':>10}{'memory':>8}   limits")
    for name, run in found.items():
        ratios = run["seconds"] / plain["seconds"], run["bytes"] / plain["bytes"]
        limits = " / ".join("-" if a is None else f"{a}" for a in AIMS.get(name, ()))
        print(f"{name:<26}{ratios[0]:>7.2f}{declared(name):>10.2f}{ratios[1]:>8.2f}   {limits}")


if __name__ == "__main__":
    main()
