"""What an environment costs: decisions per CPU second, and scheduling's share of a run.

    OMP_NUM_THREADS=1 python benchmarks/environments.py [--json] [--repeats 5]

Everything is measured in CPU seconds of this process, one thread: on a shared machine wall time
says nothing. Each figure is the median of several repetitions, with the smallest and the largest.

- decisions per CPU second of every face: a single closed-form environment, 64 of them for
  Stable-Baselines3 and for Gymnasium (8 sources, 4 strata, records included), and one around a
  language model of 0.1 million parameters;
- the share of PPO's training time that is spent outside the fast world;
- the share of a fine-tuning run (0.1m) that is scheduling: planning rows, measuring held-out
  losses, deciding, recording; what is left is training.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.curves.gymnasium_vector import CurvesVectorEnv
from mixgym.envs.curves.task import sample_task
from mixgym.envs.curves.vector import CurvesVecEnv
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.registration import make_mixture_env
from mixgym.trainer.config import RunConfig

COUNT, SOURCES, STRATA = 64, 8, 4
LANGUAGE = {
    "sources": {
        name: {"embedded": name, "rows": 200} for name in ("addition", "reversal", "noise")
    },
    "data": {"max_length": 128, "strata": 2},
    "model": {"name": "0.1m"},
    "training": {"steps": 60, "interval": 10, "packs": 8},
}


def fast_world() -> CurvesVecEnv:
    """64 environments of 8 sources and 4 strata."""
    tasks = [sample_task(s, sources=SOURCES, strata=STRATA) for s in range(256)]
    options = EnvironmentOptions(learner="curves", max_sources=SOURCES, max_strata=STRATA)
    return CurvesVecEnv(COUNT, tasks, options)


def rate(decisions: int, run: Callable[[], Any]) -> float:
    """Decisions per CPU second."""
    start = time.process_time()
    run()
    return decisions / (time.process_time() - start)


def vec_env() -> Callable[[], float]:
    """The face for Stable-Baselines3."""
    env = fast_world()
    env.reset()
    actions = np.zeros((COUNT, *(env.action_space.shape or ())), np.float32)
    return lambda: rate(320 * COUNT, lambda: [env.step(actions) for _ in range(320)])


def vector_env() -> Callable[[], float]:
    """The face for Gymnasium."""
    env = CurvesVectorEnv(COUNT)
    env.core = fast_world().core
    env.reset(seed=0)
    actions = np.zeros((COUNT, *(env.core.action_space.shape or ())), np.float32)
    return lambda: rate(320 * COUNT, lambda: [env.step(actions) for _ in range(320)])


def single(**options: Any) -> Callable[[], float]:
    """One environment of Gymnasium, an episode after the other."""
    env = make_mixture_env(**options)
    zero = np.zeros(env.action_space.shape or (), np.float32)

    def episodes() -> float:
        decisions, seconds = 0, 0.0
        while decisions < 6:
            env.reset(seed=0)
            start, done = time.process_time(), False
            while not done:
                done = env.step(zero)[2]
                decisions += 1
            seconds += time.process_time() - start
        return decisions / seconds

    return episodes


def share_outside() -> float:
    """Share of PPO's training time (CPU) that is not spent in the environment."""
    from mixgym.trainer.training.train import make_algorithm

    env = fast_world()
    inside = 0.0
    step = env.step_wait

    def timed() -> Any:
        nonlocal inside
        start = time.process_time()
        answer = step()
        inside += time.process_time() - start
        return answer

    env.step_wait = timed  # type: ignore[method-assign]
    algorithm = make_algorithm(RunConfig(), env, "curves")
    start = time.process_time()
    algorithm.learn(4 * 32 * COUNT)
    return 1.0 - inside / (time.process_time() - start)


def scheduling() -> dict[str, float]:
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
        config = RunConfig.model_validate({**LANGUAGE, "run": run_options})
        run = RunFolder.create(config.run.dir, config)
        assembly = assemble(config)
        assembly.agent.begin(assembly.vector.reset())
        writer = RunWriter(run.tensorboard, 1, 1)
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


def measure(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """All figures."""
    faces = {
        "curves, single": single(),
        f"curves, CurvesVecEnv {COUNT} x {SOURCES} x {STRATA}": vec_env(),
        f"curves, CurvesVectorEnv {COUNT} x {SOURCES} x {STRATA}": vector_env(),
        "causal_lm 0.1m, 10 steps a decision": single(
            environment={"learner": "causal_lm"}, **LANGUAGE
        ),
    }
    rates = {}
    for name, run in faces.items():
        run()  # warm
        rates[name] = median([run() for _ in range(repeats)])
    shares = [scheduling() for _ in range(repeats)]
    return {
        "decisions per CPU second": rates,
        "share of CPU time": {
            "PPO on the fast world, outside the environment": median(
                [share_outside() for _ in range(repeats)]
            ),
            **{
                f"fine-tuning, {name}": median([share[name] for share in shares])
                for name in shares[0]
            },
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = measure(options.repeats)
    command = shlex.join(["python", str(Path("benchmarks") / Path(__file__).name), *sys.argv[1:]])
    if options.json:
        print(json.dumps({"command": command, **found}, indent=2))
        return
    print(f"OMP_NUM_THREADS=1 {command}   (median of {options.repeats}, smallest .. largest)")
    for title, rows in found.items():
        print(f"\n{title}")
        for name, row in rows.items():
            digits = 3 if title.startswith("share") else 0 if row["median"] > 100 else 2
            low, mid, high = (f"{row[k]:,.{digits}f}" for k in ("low", "median", "high"))
            print(f"  {name:<52} {mid:>9}   ({low} .. {high})")


if __name__ == "__main__":
    main()
