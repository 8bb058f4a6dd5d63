"""What an environment costs: decisions per CPU second, and scheduling's share of a run.

    OMP_NUM_THREADS=1 python benchmarks/environments.py [--json] [--repeats 5] [--smoke]

Everything is measured in CPU seconds of this process, one thread: on a shared machine wall time
says nothing. Each figure is the median of several repetitions, with the smallest and the largest.

- decisions per CPU second of every face: a single closed-form environment, as it is and with the
  wrappers of ``gym.make``, 64 of them for Stable-Baselines3 and for Gymnasium (8 sources, 4 strata,
  records included but not read), 64 on the tasks of ``world-train``, which agents are trained on
  (all terms of the dynamics, padded to the largest task), and one around a language model of 0.1
  million parameters;
- the share of PPO's training time that is spent outside the fast world;
- the share of a fine-tuning run (0.1m) that is scheduling: planning rows, measuring held-out
  losses, deciding, recording; what is left is training.

``--smoke`` goes through everything once, in seconds; its figures mean nothing.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from mixgym.envs.curves.gymnasium_vector import CurvesVectorEnv
from mixgym.envs.curves.tasks.prior import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.registration import make_mixture_env
from mixgym.trainer.config import RunConfig

SOURCES, STRATA = 8, 4


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        count: environments in a batch.
        steps: of a batch in a repetition.
        single: decisions of a single environment in a repetition, at least.
        rollouts: of PPO.
        language: optimiser steps of a fine-tuning run.
        rows: of each of its sources.
    """

    count: int = 64
    steps: int = 320
    single: int = 60
    rollouts: int = 4
    language: int = 60
    rows: int = 200


SMOKE = Size(count=4, steps=8, single=6, rollouts=1, language=4, rows=60)


def language(size: Size) -> dict[str, Any]:
    """The sections of a configuration that fine-tunes a small language model."""
    names = ("addition", "reversal", "noise")
    return {
        "sources": {name: {"embedded": name, "rows": size.rows} for name in names},
        "data": {"max_length": 128, "strata": 2},
        "model": {"name": "0.1m"},
        "training": {"steps": size.language, "interval": min(10, size.language), "packs": 8},
    }


def fast_world(count: int) -> CurvesVecEnv:
    """So many environments of 8 sources and 4 strata, on tasks of the wide prior."""
    tasks = [sample_task(s, sources=SOURCES, strata=STRATA) for s in range(256)]
    options = EnvironmentOptions(learner="curves", max_sources=SOURCES, max_strata=STRATA)
    return CurvesVecEnv(count, tasks, options)


def rate(decisions: int, run: Callable[[], Any]) -> float:
    """Decisions per CPU second."""
    start = time.process_time()
    run()
    return decisions / (time.process_time() - start)


def gymnasium_face(size: Size) -> CurvesVectorEnv:
    """The face for Gymnasium around the same arrays."""
    env = CurvesVectorEnv(size.count)
    env.core = fast_world(size.count).core
    return env


def batch(size: Size, env: Any) -> Callable[[], float]:
    """Zero actions in all environments of a batch."""
    env.reset()
    actions = np.zeros((size.count, *env.core.action_space.shape), np.float32)

    def steps() -> None:
        for _ in range(size.steps):
            env.step(actions)  # what it returns is let go, as trainings do

    return lambda: rate(size.steps * size.count, steps)


def single(env: Any, least: int) -> Callable[[], float]:
    """One environment, an episode after the other until there were enough decisions."""
    zero = np.zeros(env.action_space.shape or (), np.float32)

    def episodes() -> float:
        decisions, seconds = 0, 0.0
        while decisions < least:
            env.reset(seed=0)
            start, done = time.process_time(), False
            while not done:
                done = env.step(zero)[2]
                decisions += 1
            seconds += time.process_time() - start
        return decisions / seconds

    return episodes


def share_outside(size: Size) -> float:
    """Share of PPO's training time (CPU) that is not spent in the environment."""
    from mixgym.trainer.training.algorithms import make_algorithm

    env = fast_world(size.count)
    inside = 0.0
    step = env.step_wait

    def timed() -> Any:
        nonlocal inside
        start = time.process_time()
        answer = step()
        inside += time.process_time() - start
        return answer

    env.step_wait = timed  # type: ignore[method-assign]
    algorithm = make_algorithm(RunConfig(), env)
    start = time.process_time()
    algorithm.learn(size.rollouts * 32 * size.count)
    return 1.0 - inside / (time.process_time() - start)


def scheduling(size: Size) -> dict[str, float]:
    """CPU shares of a fine-tuning run, from its first decision to its last."""
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.envs.packing.plane import PackedPlane
    from mixgym.trainer.finetuning.assembly import assemble
    from mixgym.trainer.runs.folder import RunFolder
    from mixgym.trainer.runs.recorder import Recorder
    from mixgym.trainer.runs.tensorboard import RunWriter

    spent = {"train": 0.0, "measure": 0.0, "plan": 0.0}

    def timed(owner: Any, name: str, key: str) -> Callable[[], None]:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            answer = real(*arguments, **options)
            spent[key] += time.process_time() - start
            return answer

        setattr(owner, name, call)
        return lambda: setattr(owner, name, real)

    with tempfile.TemporaryDirectory() as folder:
        run_options = {"dir": f"{folder}/run", "save_every": 10_000}
        config = RunConfig.model_validate({**language(size), "run": run_options})
        run = RunFolder.create(config.run.dir, config)
        assembly = assemble(config)
        assembly.agent.begin(assembly.vector.reset())
        writer = RunWriter(run.tensorboard)
        undo = [
            timed(CausalLM, "train", "train"),
            timed(CausalLM, "evaluate", "measure"),
            timed(PackedPlane, "plan", "plan"),
        ]
        start = time.process_time()
        decisions = config.training.steps // config.training.interval
        assembly.agent.learn(
            decisions,
            callback=[Recorder(run, assembly.env, writer)],
            reset_num_timesteps=False,
        )
        total = time.process_time() - start
        for back in undo:
            back()
        writer.close()
    rest = total - sum(spent.values())
    return {
        "measuring held-out losses": spent["measure"] / total,
        "planning rows and packs": spent["plan"] / total,
        "deciding and recording": rest / total,
        "all of scheduling": 1.0 - spent["train"] / total,
    }


def median(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(repeats: int, size: Size) -> dict[str, dict[str, dict[str, float]]]:
    """All figures."""
    name, shape = "mixgym/Mixture-v0", f"{size.count} x {SOURCES} x {STRATA}"
    tuned = make_mixture_env(environment={"learner": "causal_lm"}, **language(size))
    interval = tuned.training.interval
    faces = {
        "curves, single": single(make_mixture_env(), size.single),
        "curves, gym.make": single(gym.make(name), size.single),
        f"curves, CurvesVecEnv {shape}": batch(size, fast_world(size.count)),
        f"curves, CurvesVectorEnv {shape}": batch(size, gymnasium_face(size)),
        f"curves, CurvesVecEnv {size.count}, world-train": batch(size, CurvesVecEnv(size.count)),
        f"causal_lm 0.1m, {interval} steps a decision": single(tuned, -(-size.single // 10)),
    }
    rates = {}
    for face, run in faces.items():
        run()  # warm
        rates[face] = median([run() for _ in range(repeats)])
    shares = [scheduling(size) for _ in range(repeats)]
    return {
        "decisions per CPU second": rates,
        "share of CPU time": {
            "PPO on the fast world, outside the environment": median(
                [share_outside(size) for _ in range(repeats)]
            ),
            **{
                f"fine-tuning, {part}": median([share[part] for share in shares])
                for part in shares[0]
            },
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="everything once, in seconds")
    options = parser.parse_args()
    repeats, size = (1, SMOKE) if options.smoke else (options.repeats, Size())
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = measure(repeats, size)
    command = shlex.join(["python", str(Path("benchmarks") / Path(__file__).name), *sys.argv[1:]])
    if options.json:
        print(json.dumps({"command": command, **found}, indent=2))
        return
    print(f"OMP_NUM_THREADS=1 {command}   (median of {repeats}, smallest .. largest)")
    for title, rows in found.items():
        print(f"\n{title}")
        for name, row in rows.items():
            digits = 3 if title.startswith("share") else 0 if row["median"] > 100 else 2
            low, mid, high = (f"{row[k]:,.{digits}f}" for k in ("low", "median", "high"))
            print(f"  {name:<52} {mid:>9}   ({low} .. {high})")


if __name__ == "__main__":
    main()
