"""What bilevel source weights find: spoilt answers, a small good source, noise, languages.

    python benchmarks/bilevel_weights.py denoise   [--model 1m] [--estimators paired,alignment]
    python benchmarks/bilevel_weights.py small     [--models 0.1m,1m,5m]
    python benchmarks/bilevel_weights.py multitask [--model 0.1m]      # needs $MIXGYM_DATA
    python benchmarks/bilevel_weights.py multilingual [--model 0.1m]   # needs $MIXGYM_DATA
    python benchmarks/bilevel_weights.py curves [--agent runs/agent]   # the fast world's test tasks

``denoise``: three sources of one task (the next letter of each of four) with 0, 50 and 100 % of the
answers blanked, and a clean validation set. ``small``: a tenth of the rows has the answers of the
validation set, nine tenths answer otherwise (the letter before); the start is the share of rows.
``multitask``: all sources, of which noise is no target; ``multilingual``: English is the only
target. The last two compare ``scalebio`` (from uniform weights, and from the sources' sizes),
``uniform``, ``proportional`` and ``hbo`` at equal training tokens and, for those that cost less
than ``scalebio``, at its total compute (more steps).
``curves`` scores the prior alone, ScaleBiO alone, and an agent's folder with and without ScaleBiO
under it; differences are paired by task.

Compute is counted in passes forward over a training step, as estimators declare it; what rewards
and reports measure is the same for all. Every row is a mean over seeds with its spread.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse

KINDS = ("denoise", "small", "multitask", "multilingual", "curves")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FROM_SIZES = ", from the sizes"  # behind an agent's name: its prior is proportional, not uniform
SHAPE = {"0.1m": (64, 8, 3e-3), "1m": (64, 2, 2e-3), "5m": (64, 2, 1e-3)}  # tokens, packs, rate


def rows_of(count: int, shift: int, blank: float, seed: int) -> list[dict[str, str]]:
    """Prompts of four letters; each answer is shifted, or blank with that probability."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        letters = [generator.randrange(26) for _ in range(4)]
        answer = " ".join(LETTERS[(i + shift) % 26] for i in letters)
        spoilt = generator.random() < blank
        prompt = "next " + " ".join(LETTERS[i] for i in letters)
        rows.append({"prompt": prompt, "completion": "." if spoilt else answer})
    return rows


def write(path: Path, rows: Iterable[dict[str, str]]) -> str:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def learn(options: dict[str, Any], seed: int) -> list[dict[str, float]]:
    """Train under the prior as the agent's choice; the health record of every decision."""
    from mixgym.envs.build import build_environment
    from mixgym.envs.options import WorldOptions

    env = build_environment(WorldOptions.model_validate({**options, "seed": seed}))
    assert env.action_space.shape is not None
    env.reset(seed=seed)
    found, done = [], False
    while not done:
        _, _, done, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        found.append({"step": info["decision"]["steps"], **info["decision"]["bilevel"]})
    return found


def options_of(
    sources: dict[str, Any], model: str, estimator: str, steps: int, **bilevel: Any
) -> dict[str, Any]:
    """A run on generated rows."""
    length, packs, rate = SHAPE[model]
    return {
        "sources": sources,
        "data": {"max_length": length, "strata": 1},
        "model": {"name": model},
        "training": {
            "steps": steps, "interval": 10, "packs": packs, "learning_rate": rate,
            "schedule": "constant",
        },
        "environment": {"step_rule": "bilevel", "prior": bilevel.pop("prior", "uniform")},
        "bilevel": {"estimator": estimator, **bilevel},
    }  # fmt: skip


def denoise(arguments: argparse.Namespace, folder: Path) -> None:
    """Weights of a clean, a half blank and a blank source."""
    shares = {"clean": 0.0, "half": 0.5, "blank": 1.0}
    sources: dict[str, Any] = {
        name: {"path": write(folder / f"{name}.jsonl", rows_of(3200, 1, share, 10 + i))}
        for i, (name, share) in enumerate(shares.items())
    }
    held_out = rows_of(400, 1, 0.0, 99)
    for name in ("half", "blank"):
        sources[name]["target"] = 0.0
    for split, part in (("reward", 0), ("select", 200), ("test", 300)):
        rows = held_out[part : part + (200 if split == "reward" else 100)]
        sources["clean"][split] = write(folder / f"{split}.jsonl", rows)
    print(f"{'estimator':<12}{'seed':>5}  steps to 0.9   weights at the end (clean half blank)")
    for estimator in arguments.estimators.split(","):
        for seed in range(arguments.seeds):
            options = options_of(sources, arguments.model, estimator, arguments.steps)
            options["training"]["packs"] = arguments.packs or options["training"]["packs"]
            show_trace(estimator, seed, learn(options, seed), tuple(shares), "clean")


def show_trace(
    label: str, seed: int, trace: list[dict[str, float]], names: tuple[str, ...], good: str
) -> None:
    """A line for a run."""
    reached = [row["step"] for row in trace if row[f"weight/{good}"] > 0.9]
    weights = " ".join(f"{trace[-1][f'weight/{name}']:.3f}" for name in names)
    first = f"{reached[0]:.0f}" if reached else "never"
    health = f"travel {trace[-1]['travel']:.2f}  gap {trace[-1].get('gap', float('nan')):+.1e}"
    every = trace[:: max(1, len(trace) // 6)]
    course = " ".join(f"{row[f'weight/{good}']:.2f}" for row in every)
    print(f"{label:<12}{seed:>5}{first:>14}   {weights}   {health}   {good}: {course}", flush=True)


def small(arguments: argparse.Namespace, folder: Path) -> None:
    """A good source with a tenth of the rows, among nine tenths that answer otherwise."""
    good = rows_of(1000, 1, 0.0, 1)
    sources = {
        "good": {"path": write(folder / "good.jsonl", good)},
        "other": {"path": write(folder / "other.jsonl", rows_of(9000, -1, 0.0, 2)), "target": 0.0},
    }
    held_out = rows_of(400, 1, 0.0, 99)
    for split, part in (("reward", 0), ("select", 200), ("test", 300)):
        rows = held_out[part : part + (200 if split == "reward" else 100)]
        sources["good"][split] = write(folder / f"{split}.jsonl", rows)
    print(f"{'model':<12}{'seed':>5}  steps to 0.9   weights at the end (good other)")
    for model in arguments.models.split(","):
        for seed in range(arguments.seeds):
            options = options_of(
                sources, model, arguments.estimators.split(",")[0], arguments.steps,
                prior="proportional",
            )  # fmt: skip
            show_trace(model, seed, learn(options, seed), ("good", "other"), "good")


def compare(arguments: argparse.Namespace, folder: Path, kind: str) -> None:
    """Held-out NLL under several schedulers, at equal tokens and at equal compute."""
    base = _real(arguments, kind)
    agents = arguments.agents.split(";")
    runs: dict[str, list[dict[str, Any]]] = {}
    for agent in agents:
        for seed in range(arguments.seeds):
            runs.setdefault(agent, []).append(_run(base, agent, seed, arguments.steps, folder))
    extra = statistics.mean(run["compute"] for run in runs["scalebio"])
    for agent in agents:
        own = statistics.mean(run["compute"] for run in runs[agent])
        steps = round(arguments.steps * extra / own)
        if not agent.startswith("scalebio") and steps > 1.02 * arguments.steps:
            for seed in range(arguments.seeds):
                found = _run(base, agent, seed, steps, folder)
                runs.setdefault(f"{agent}, equal compute", []).append(found)
    print(f"{'agent':<28}{'steps':>6}{'compute':>9}   mean NLL           worst NLL")
    for label, found in runs.items():
        cells = [_spread([run[key] for run in found]) for key in ("mean", "worst")]
        cost = statistics.mean(run["compute"] for run in found) / extra
        print(f"{label:<28}{found[0]['steps']:>6}{cost:>9.2f}   {cells[0]:<18} {cells[1]}")
    for agent in (a for a in agents if a.startswith("scalebio")):
        print(f"\n{agent}: weights at the end over those at the start, seed by seed:")
        for name in runs[agent][0]["weights"]:
            ratios = [r["weights"][name] / r["first"][name] for r in runs[agent]]
            cells = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"  {name:<16}{_spread(ratios)}   ({cells})")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"


def _real(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    root = Path(os.environ["MIXGYM_DATA"]) / kind
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    targets = {
        "multitask": lambda n: n != "noise",
        "multilingual": lambda n: n in ("en", "english"),
    }
    sources = {
        f.name: {"path": str(f), "target": float(targets[kind](f.name))}
        for f in folders
        if f.name != "longcontext"
    }
    length, packs, rate = 256, 8, {"0.1m": 3e-3, "1m": 1e-3, "5m": 1e-3}[arguments.model]
    return {
        "sources": sources,
        "data": {"max_length": length, "strata": 2, "held_out_tokens": arguments.held_out},
        "model": {"name": arguments.model},
        "training": {"interval": arguments.interval, "packs": packs, "learning_rate": rate},
        "run": {"tensorboard": False, "save_every": 10_000},
    }


def _run(base: dict[str, Any], agent: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    from mixgym.trainer.config import RunConfig
    from mixgym.trainer.finetuning.finetune import finetune

    begin = time.process_time()
    where = folder / f"{agent}-{seed}-{steps}"
    options = {
        **base,
        "seed": seed,
        "training": {**base["training"], "steps": steps},
        "environment": {"prior": "proportional" if agent.endswith(FROM_SIZES) else "uniform"},
        "agent": {"name": agent.removesuffix(FROM_SIZES)},
        "run": {**base["run"], "dir": str(where)},
    }
    config = RunConfig.model_validate(options)
    summary = finetune(config)
    records = [json.loads(line) for line in (where / "decisions.jsonl").read_text().splitlines()]
    first, last = records[0], records[-1]
    trained = last["cost"]["train_tokens"] * 3
    factor = 1.0
    if agent.startswith("scalebio"):
        from mixgym.envs.bilevel.two_model_estimators import make_estimator

        factor = make_estimator(config.bilevel).cost()
    print(f"# {where.name}: {time.process_time() - begin:.0f} CPU s", flush=True)
    return {
        "steps": summary["steps"],
        "mean": summary["test"]["mean_after"],
        "worst": summary["test"]["worst_after"],
        "compute": trained * factor + last["cost"].get("probe_tokens", 0),
        "weights": last["mixture"],
        "first": first["mixture"],
    }


def curves(arguments: argparse.Namespace) -> None:
    """Final NLL on the test tasks of the fast world."""
    from mixgym.agents.policies.composed import load_agent
    from mixgym.envs.curves.tasks.sets import TASK_SETS
    from mixgym.envs.options import EnvironmentOptions
    from mixgym.envs.spaces.mixture import action_size
    from mixgym.trainer.training.validation import score

    shape = (12, 4)  # K_max, G_max

    def prior(observation: Any, state: Any, start: Any, deterministic: bool) -> Any:
        return np.zeros((len(observation), action_size(shape)), np.float32), state

    plain = EnvironmentOptions(learner="curves")
    rule = plain.model_copy(update={"step_rule": "bilevel"})
    wanted = {"the prior (uniform)": (prior, plain), "scalebio": (prior, rule)}
    if arguments.agent:
        agent = load_agent(Path(arguments.agent) / "agent", shape=shape).predict
        wanted["the agent alone"] = (agent, plain)
        wanted["the agent on top of scalebio"] = (agent, rule)
    found = {name: score(*case, tasks=TASK_SETS["test"]) for name, case in wanted.items()}
    print(f"{'':<30}{'mean NLL':>9}{'worst':>8}   minus prior        minus scalebio")
    for name, own in found.items():
        gaps = [own.mean - found[other].mean for other in ("the prior (uniform)", "scalebio")]
        cells = [f"{g.mean():+.4f} ({g.std(ddof=1) / len(g) ** 0.5:.4f})" for g in gaps]
        print(f"{name:<30}{own.mean.mean():>9.4f}{own.worst.mean():>8.4f}   {'   '.join(cells)}")


def main() -> None:
    """Run one of the five."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=KINDS, nargs="?", default="denoise")
    parser.add_argument("--model", default="1m", choices=tuple(SHAPE))
    parser.add_argument("--models", default="0.1m,1m,5m")
    parser.add_argument("--estimators", default="alignment")
    parser.add_argument(
        "--agents",
        default="scalebio;scalebio, from the sizes;uniform;proportional;hbo",
        help="separated by ;",
    )
    parser.add_argument("--agent", help="curves: folder of `mixgym train`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--packs", type=int, help="denoise: packs of 64 tokens in a step")
    parser.add_argument("--interval", type=int, default=10, help="steps between decisions")
    parser.add_argument("--held-out", type=int, default=600, help="supervised tokens per source")
    arguments = parse(parser, model="0.1m", models="0.1m", seeds=1, steps=20)
    if arguments.what == "curves":
        curves(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        if arguments.what in ("denoise", "small"):
            {"denoise": denoise, "small": small}[arguments.what](arguments, Path(name))
        else:
            compare(arguments, Path(name), arguments.what)


if __name__ == "__main__":
    main()
