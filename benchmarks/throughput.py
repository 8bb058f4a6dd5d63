"""Fine-tuning throughput: this project's loop beside TRL's SFTTrainer.

    python benchmarks/throughput.py [--model 5m|smollm2|1m|0.1m] [--steps N] [--repeats N] [--json]

Both start from the same weights and train once on the same rows, in steps of the same size, packed
(TRL: ``packing=True``, best fit decreasing), without gradient checkpointing, with the same AdamW,
clipping, constant learning rate and precision, on one thread. Runs take turns, each in a process of
its own, after a forward and backward pass that is not counted; medians are reported. The figure is
supervised tokens per CPU second, from rows in memory to updated weights: on a machine that is
shared, wall time says nothing. Losses are compared, so that a fast wrong loop shows: one more run
of TRL's is given our packs in our order, and its loss must be ours at every step; of the timed
runs, each with its own packs, the table has the mean training loss and the held-out NLL afterwards.

Logits are computed only where a token is supervised; ``--labels all`` supervises every token and
shows how much of the gain comes from there.

TRL is optional: ``pip install mixgym[bench]``. Text: ``$MIXGYM_DATA/multitask`` (folders with
train/valid/test files) or the embedded sources.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support.common import (
    learner_of,
    parse,
    prepare_text,
    quiet_libraries,
    save_for_workers,
    saved_for_workers,
    sft_config,
    text_sources,
)

AIMS = {"5m": 1.1, "smollm2": 1.4}  # ours / TRL
SIZES = {"0.1m": (256, 4), "1m": (512, 4), "5m": (512, 2), "smollm2": (256, 4)}  # tokens, packs
LEARNING_RATE = {"0.1m": 1e-3, "1m": 1e-3, "5m": 1e-3, "smollm2": 1e-4}
SKIPPED = ("longcontext", "noise")


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Encode the text once, and save weights, tokenizer and rows for every worker."""
    length, _ = SIZES[arguments.model]
    sources = prepare_text(folder, arguments.model, length, SKIPPED, labels=arguments.labels)
    save_for_workers(folder / "sources.pkl", sources)


class Job:
    """What a worker was asked to do, with the data that both loops share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from mixgym.envs.packing.plane import PackedPlane
        from mixgym.envs.spaces.mixture import Mixture

        self.steps: int = arguments.steps
        self.precision: str = arguments.precision
        self.fp32_matmul: str = arguments.fp32_matmul
        self.accumulate: bool = arguments.accumulate
        self.model = Path(arguments.worker_folder) / "model"
        self.length, self.packs = SIZES[arguments.model]
        self.rate = LEARNING_RATE[arguments.model]
        self.sources = saved_for_workers(Path(arguments.worker_folder) / "sources.pkl")
        count = len(self.sources)
        self.mixture = Mixture(np.full(count, 1 / count), np.ones((count, 1)))
        self.plane = PackedPlane(
            self.sources, unit="supervised_tokens", capacity=self.length, packs=self.packs, seed=0
        )

    def learner(self) -> Any:
        """The learner with the starting weights."""
        from mixgym.envs.options import ModelOptions, TrainingOptions

        model = {"precision": self.precision, "fp32_matmul": self.fp32_matmul}
        training = TrainingOptions(
            steps=self.steps,
            packs=self.packs,
            schedule="constant",
            warmup=0.0,
            learning_rate=self.rate,
        )
        options = ModelOptions.model_validate(model)
        return learner_of(self.model, self.sources, self.length, options, training)


def run_ours(job: Job, profile: bool) -> dict[str, Any]:
    """Plan and train."""
    from mixgym.envs.interval_plan import Budget
    from mixgym.envs.learners.base import PlainStep

    learner = job.learner()
    _warm_up(learner.model)
    seconds: dict[str, float] = {}
    with _stopwatches(learner, job.plane, seconds) if profile else _nothing():
        begin, wall = time.process_time(), time.perf_counter()
        plan = job.plane.plan(job.mixture, Budget(job.steps))
        report = learner.train(plan, PlainStep(), 0.0)
        cpu, wall = time.process_time() - begin, time.perf_counter() - wall
    if profile:
        seconds["everything else"] = cpu - sum(seconds.values())
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "steps": len(plan.steps),
        "supervised": int(plan.supervised.sum()),
        "tokens": int(plan.tokens.sum()),
        "losses": report.step_loss,
        "mean_loss": float(report.loss_sum.sum() / report.supervised.sum()),
        "held_out": _held_out(learner),
        "profile": seconds,
    }


def run_trl(job: Job, our_packs: bool = False) -> dict[str, Any]:
    """SFTTrainer on the rows of the same plan, packed by TRL or as we pack them."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    from mixgym.envs.interval_plan import Budget

    class Clock(TrainerCallback):  # type: ignore[misc]
        """CPU and wall time of the training loop."""

        cpu = wall = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Start."""
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            """Stop after the last step."""
            if state.global_step == state.max_steps:
                self.cpu = time.process_time() - self.cpu
                self.wall = time.perf_counter() - self.wall

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Counts what it trains on."""

        supervised: list[int]
        tokens = 0

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            """Count, then train."""
            self.supervised.append(int((inputs["labels"] != -100).sum()))
            self.tokens += inputs["labels"].numel()
            return super().training_step(model, inputs, *rest, **named)

    quiet_libraries()
    plan = job.plane.plan(job.mixture, Budget(job.steps))
    rows = _packs(job, plan) if our_packs else _documents(job, plan)
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = Counting(
            model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            train_dataset=Dataset.from_list(list(rows)),
            callbacks=[clock],
            args=sft_config(
                output,
                job.length,
                dataset_kwargs={"skip_prepare_dataset": our_packs},
                train_sampling_strategy="sequential" if our_packs else "random",
                per_device_train_batch_size=1 if job.accumulate else job.packs,
                gradient_accumulation_steps=job.packs if job.accumulate else 1,
                learning_rate=job.rate,
                bf16=job.precision == "bf16",
                logging_steps=1,
            ),
        )
        trainer.supervised = []
        _warm_up(trainer.model)
        with _silence():
            trainer.train()
    learner = job.learner()
    learner.model.load_state_dict(trainer.model.state_dict())
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    counts = trainer.supervised
    per_step = np.add.reduceat(counts, np.arange(0, len(counts), -(-len(counts) // len(losses))))
    return {
        "cpu_seconds": clock.cpu,
        "wall_seconds": clock.wall,
        "steps": len(losses),
        "supervised": sum(counts),
        "tokens": trainer.tokens,
        "losses": losses,
        "mean_loss": float(np.average(losses, weights=per_step)),
        "held_out": _held_out(learner),
        "profile": {},
    }


def _warm_up(model: Any) -> None:
    """One forward and backward pass, so that no run pays for first calls."""
    import torch

    from mixgym.envs.learners.models.attention import packed_forward

    ids = torch.arange(64)[None]
    packed_forward(model, ids, ids, (64,)).mean().backward()
    model.zero_grad(set_to_none=True)


def _packs(job: Job, plan: Any) -> Iterator[dict[str, list[int]]]:
    """Our packs as TRL stores its own; steps that are full come first in a plan."""
    for packs in plan.steps:
        if len(packs) == job.packs:
            for pack in packs:
                found = list(_rows(job, pack))
                yield {
                    "input_ids": [token for row in found for token in row["input_ids"]],
                    "labels": [label for row in found for label in row["labels"]],
                    "seq_lengths": pack.lengths.tolist(),
                }


def _documents(job: Job, plan: Any) -> Iterator[dict[str, list[int]]]:
    for packs in plan.steps:
        for pack in packs:
            yield from _rows(job, pack)


def _rows(job: Job, pack: Any) -> Iterator[dict[str, list[int]]]:
    for source, _, row in pack.rows.tolist():
        tokens, labels = job.sources[source].splits["train"].row(row)
        masked = np.where(labels, tokens, -100)
        yield {"input_ids": tokens.tolist(), "labels": masked.tolist()}


def _held_out(learner: Any) -> float:
    """Nats per supervised token on the first packs of the reward split."""
    batches = learner.held_out.batches("reward", learner.trained.language)
    learner.held_out.kept["reward"] = batches[:1]
    found = learner.evaluate("reward")
    return float(found.loss_sum.sum() / found.supervised.sum())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _silence() -> Iterator[None]:
    """Send what a library prints to the standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


@contextmanager
def _stopwatches(learner: Any, plane: Any, seconds: dict[str, float]) -> Iterator[None]:
    """Add up the CPU seconds of the parts of a step."""

    def timed(owner: Any, name: str, part: str, minus: tuple[str, ...] = ()) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapper(*args: Any, **named: Any) -> Any:
            inner = sum(seconds.get(key, 0.0) for key in minus)
            begin = time.process_time()
            result = original(*args, **named)
            inside = sum(seconds.get(key, 0.0) for key in minus) - inner
            seconds[part] = seconds.get(part, 0.0) + time.process_time() - begin - inside
            return result

        setattr(owner, name, wrapper)
        return lambda: setattr(owner, name, original)

    import torch

    body = "forward: body"
    undo = [
        timed(plane, "plan", "plan: sample and pack"),
        timed(learner.steps.halves, "micro_batches", "batching"),
        timed(learner.model.base_model, "forward", body),
        timed(learner.trained.language, "token_losses", "forward: head and loss", (body,)),
        timed(torch.Tensor, "backward", "backward"),
        timed(learner.steps, "apply", "clipping and optimiser"),
    ]
    try:
        yield
    finally:
        for one in undo:
            one()


def spawn(kind: str, arguments: argparse.Namespace, folder: Path, fp32_matmul: str) -> Any:
    """One worker process on one thread; its result."""
    command = [sys.executable, __file__, "--worker", kind, "--worker-folder", str(folder)]
    command += ["--model", arguments.model, "--steps", str(arguments.steps)]
    command += ["--precision", arguments.precision, "--fp32-matmul", fp32_matmul]
    command += ["--accumulate"] * arguments.accumulate
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=os.environ | threads, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"the {kind} run failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(arguments: argparse.Namespace) -> None:
    """The body of a worker: print one line of JSON."""
    import torch

    torch.set_num_threads(1)
    job = Job(arguments)
    if arguments.worker in ("trl", "check") and job.fp32_matmul == "onednn":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    if arguments.worker == "trl":
        result = run_trl(job)
    elif arguments.worker == "check":
        result = run_trl(job, our_packs=True)
    else:
        result = run_ours(job, profile=arguments.worker == "profile")
    print(json.dumps(result))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs of all settings, in turns."""
    kinds = ["ours", "trl"] if importlib.util.find_spec("trl") else ["ours"]
    if len(kinds) == 1:
        print("TRL is not installed, so only our loop is measured: pip install mixgym[bench]")
    settings = ["default", "onednn"] if arguments.fp32_matmul == "both" else [arguments.fp32_matmul]
    results: dict[str, dict[str, list[Any]]] = {s: {k: [] for k in kinds} for s in settings}
    profiles = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(arguments, Path(name))
        for repeat in range(arguments.repeats):
            for setting in settings:
                for kind in kinds if repeat % 2 == 0 else kinds[::-1]:
                    result = spawn(kind, arguments, Path(name), setting)
                    results[setting][kind].append(result)
                    rate = result["supervised"] / result["cpu_seconds"]
                    note = f"run {repeat + 1} {setting:8} {kind:5} {rate:8.1f} tokens/CPU-s"
                    print(note, file=sys.stderr, flush=True)
        for setting in settings:
            profiles[setting] = spawn("profile", arguments, Path(name), setting)["profile"]
        apart = None
        if "trl" in kinds:
            ours = results[settings[0]]["ours"][0]["losses"]
            theirs = spawn("check", arguments, Path(name), settings[0])["losses"]
            apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=False))
    return {
        "largest_loss_difference_on_our_packs": apart,
        "labels": arguments.labels,
        "model": arguments.model,
        "precision": arguments.precision,
        "text": "embedded" if text_sources(SKIPPED) == "embedded" else "multitask",
        "tokens_per_step": SIZES[arguments.model][0] * SIZES[arguments.model][1],
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "aim": AIMS.get(arguments.model),
        "settings": {s: _summary(results[s]) | {"profile": profiles[s]} for s in settings},
    }


def _summary(runs: dict[str, list[Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind, found in runs.items():
        rates = [run["supervised"] / run["cpu_seconds"] for run in found]
        raw = [run["tokens"] / run["cpu_seconds"] for run in found]
        summary[kind] = {
            "supervised_per_cpu_second": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "tokens_per_cpu_second": statistics.median(raw),
            "cpu_seconds_per_step": statistics.median(r["cpu_seconds"] / r["steps"] for r in found),
            "supervised_per_step": found[0]["supervised"] / found[0]["steps"],
            "tokens_per_step": found[0]["tokens"] / found[0]["steps"],
            "first_loss": found[0]["losses"][0],
            "mean_loss": found[0]["mean_loss"],
            "held_out_nll": found[0]["held_out"],
            "repeats_agree": len({run["held_out"] for run in found}) == 1,
        }
    if "trl" in summary:
        ours, other = summary["ours"], summary["trl"]
        for key in ("supervised_per_cpu_second", "tokens_per_cpu_second"):
            summary[f"ratio_{key}"] = ours[key] / other[key]
    return summary


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"{report['model']}, {report['precision']}, {report['tokens_per_step']} tokens a step, "
        f"{report['steps']} steps, median of {report['repeats']}, text: {report['text']}, "
        f"labels: {report['labels']}"
    )
    if (apart := report["largest_loss_difference_on_our_packs"]) is not None:
        print(f"given our packs, TRL's loss is ours at every step within {apart:.1e}")
    for setting, found in report["settings"].items():
        print(f"\nfp32 matrix products: {setting}")
        for kind in ("ours", "trl"):
            if kind in found:
                row = found[kind]
                print(
                    f"  {kind:5}{row['supervised_per_cpu_second']:9.1f} supervised tokens/CPU-s "
                    f"({row['lowest']:.1f} to {row['highest']:.1f}), "
                    f"{row['tokens_per_cpu_second']:.0f} tokens/CPU-s, "
                    f"{row['cpu_seconds_per_step']:.3f} CPU-s and "
                    f"{row['supervised_per_step']:.0f} of {row['tokens_per_step']:.0f} tokens "
                    f"supervised a step; loss {row['first_loss']:.3f} at first, "
                    f"{row['mean_loss']:.3f} on average, held-out NLL {row['held_out_nll']:.3f}"
                )
        if "trl" in found:
            aim = f" (aim {report['aim']})" if report["aim"] else ""
            print(
                f"  ours / TRL: {found['ratio_supervised_per_cpu_second']:.2f} in supervised "
                f"tokens{aim}, {found['ratio_tokens_per_cpu_second']:.2f} in all tokens"
            )
        total = sum(found["profile"].values())
        for part, seconds in sorted(found["profile"].items(), key=lambda item: -item[1]):
            print(f"    {part:26}{100 * seconds / total:6.1f} %")


def main() -> None:
    """Parse the command line; measure, or be a worker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", choices=list(SIZES), default="5m")
    parser.add_argument("--steps", type=int, default=10, help="counted steps of each run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, in turns")
    parser.add_argument("--labels", choices=["completions", "all"], default="completions")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--fp32-matmul", choices=["default", "onednn", "both"], default="both", dest="fp32_matmul"
    )
    parser.add_argument(
        "--accumulate", action="store_true", help="TRL takes a step's packs one after the other"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--worker", choices=["ours", "trl", "check", "profile"], help=argparse.SUPPRESS
    )
    parser.add_argument("--worker-folder", help=argparse.SUPPRESS)
    arguments = parse(parser, model="0.1m", steps=2, repeats=1, fp32_matmul="default")
    if arguments.worker:
        work(arguments)
        return
    report = compare(arguments)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
