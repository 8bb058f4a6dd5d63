"""Packing on real rows: supervised tokens per CPU second, and waiting on two processes.

    python benchmarks/packing.py [--model 0.1m] [--rows N] [--length TOKENS] [--repeats N] [--json]

Every method trains the same rows once, in the same number of steps, with the same model, AdamW and
clipping, on one thread, one pack or padded batch of --batch documents per forward pass, each in a
process of its own; medians of repeats that take turns. CPU time from rows in memory to updated
weights: on a machine that is shared, wall time says nothing.

    padded       batches of documents at random, padded, with an attention mask
    sorted       the same, sorted by length and shuffled by batch
    trl          TRL's SFTTrainer with packing=bfd, gradient checkpointing off (if it is installed)
    packing      this project's loop, best fit decreasing, packs of one length at random
    hbp          the same with groups of lengths, balance and greedy fill

Waiting: two processes train the same plans over gloo, and each notes the CPU seconds of every
forward and backward pass. A rank that is done earlier than the other would wait: the share of the
two ranks' time that is spent so, if they meet after every pass (sharded weights), and if they meet
after every optimiser step. CPU time, so that other programs do not count.

Text: ``$MIXGYM_DATA/multitask``, long documents included (without it: the embedded sources).
"""

import argparse
import importlib.util
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("padded", "sorted", "trl", "packing", "hbp")
PLANNED = ("packing", "hbp")
SKIPPED = ("noise",)
SHORT = 8  # the short group's packs, as a part of the longest


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Encode the text once, choose rows, and save what every worker needs."""
    from mixgym.envs.build import load_corpus
    from mixgym.envs.learners.models import load_model
    from mixgym.envs.options import WorldOptions

    options = WorldOptions.model_validate(
        {
            "sources": _sources(),
            "data": {"max_length": arguments.length, "strata": 1},
            "model": {"name": arguments.model},
        }
    )
    corpus = load_corpus(options)
    where = np.concatenate(
        [
            np.stack([np.full(n, k), np.zeros(n, np.int64), np.arange(n)], axis=1)
            for k, source in enumerate(corpus.sources)
            for n in [len(source.splits["train"])]
        ]
    )
    chosen = np.random.default_rng(0).permutation(len(where))[: arguments.rows]
    (folder / "data.pkl").write_bytes(pickle.dumps((corpus.sources, where[chosen])))
    load_model(options.model, arguments.length).save_pretrained(folder / "model")
    corpus.tokenizer.save_pretrained(folder / "model")


def _sources() -> dict[str, dict[str, str]] | str:
    root = os.environ.get("MIXGYM_DATA")
    if root is None:
        return "embedded"
    folders = sorted(path for path in (Path(root) / "multitask").iterdir() if path.is_dir())
    return {f.name: {"path": str(f)} for f in folders if f.name not in SKIPPED}


class Job:
    """What a worker was asked to do."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        folder = Path(arguments.folder)
        self.model = folder / "model"
        # written by `prepare` a moment ago
        self.sources, self.rows = pickle.loads((folder / "data.pkl").read_bytes())
        self.length, self.packs, self.batch = arguments.length, arguments.packs, arguments.batch
        self.lengths = np.array([len(self.row(i)[0]) for i in range(len(self.rows))], np.int64)
        self.steps = -(-int(self.lengths.sum()) // (self.length * self.packs))

    def row(self, index: int) -> Any:
        """Tokens and labels."""
        source, _, row = self.rows[index]
        return self.sources[source].splits["train"].row(int(row))

    @property
    def supervised(self) -> int:
        """Supervised tokens of all rows."""
        return sum(int(self.row(i)[1].sum()) for i in range(len(self.rows)))

    def learner(self, passes: int) -> Any:
        """The learner with the starting weights."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from mixgym.envs.learners.causal_lm import CausalLM
        from mixgym.envs.options import ModelOptions, TrainingOptions

        return CausalLM(
            lambda: AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32),
            AutoTokenizer.from_pretrained(self.model),
            self.sources,
            max_length=self.length,
            model_options=ModelOptions(),
            training=TrainingOptions(
                steps=self.steps, accumulation=passes, schedule="constant", warmup=0.0
            ),
            seed=0,
        )

    def plan(self, method: str, processes: int) -> Any:
        """The rows as an interval plan."""
        from mixgym.envs.mixture import Mixture
        from mixgym.envs.packing.balance import Balance
        from mixgym.envs.packing.groups import Cluster, Group
        from mixgym.envs.packing.planner import PlanConfig, make_plan
        from mixgym.envs.plan import IntervalPlan, Pack

        one = (Group(self.length),)
        groups = (Group(self.length // SHORT), *one) if method == "hbp" else one
        config = PlanConfig(
            groups,
            Cluster(processes, self.length * self.packs),
            balance=Balance(sort=method == "hbp"),
        )
        found = make_plan(self.lengths, config, 0)
        steps = tuple(
            tuple(
                Pack(self.rows[documents], self.lengths[documents], groups[step.group].length)
                for documents in (found.packing[int(pack)] for pack in step.packs)
            )
            for step in found.steps
        )
        totals = np.zeros((3, len(self.sources), 1), np.int64)
        count = len(self.sources)
        return IntervalPlan(Mixture(np.full(count, 1 / count), np.ones((count, 1))), steps, *totals)


def run_planned(job: Job, method: str) -> float:
    """CPU seconds of planning and training with this project's loop."""
    from mixgym.envs.learners.base import PlainStep

    learner = job.learner(job.packs)
    _warm_up(learner.model)
    begin = time.process_time()
    learner.train(job.plan(method, 1), PlainStep(), 0.0)
    return time.process_time() - begin


def run_padded(job: Job, in_order: bool) -> float:
    """CPU seconds of a plain loop over padded batches."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).train()
    _warm_up(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    begin = time.process_time()
    generator = np.random.default_rng(0)
    order = np.argsort(job.lengths) if in_order else generator.permutation(len(job.lengths))
    batches = [order[i : i + job.batch] for i in range(0, len(order), job.batch)]
    shuffled = generator.permutation(len(batches))
    for step in np.array_split(shuffled, min(job.steps, len(batches))):
        documents = [job.row(int(i)) for batch in step for i in batches[batch]]
        count = sum(int(labels[1:].sum()) for _, labels in documents)
        for batch in step:
            ids, mask, labels = _padded([job.row(int(i)) for i in batches[batch]])
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].reshape(-1, logits.shape[-1]),
                labels[:, 1:].reshape(-1),
                reduction="sum",
            )
            (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - begin


def _padded(rows: Sequence[Any]) -> Any:
    import torch

    longest = max(len(tokens) for tokens, _ in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), -100, np.int64)
    for i, (tokens, supervised) in enumerate(rows):
        ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
        labels[i, : len(tokens)] = np.where(supervised, tokens, -100)
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels)


def run_trl(job: Job) -> float:
    """CPU seconds of SFTTrainer's loop and of its packing."""
    import transformers
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bars()

    class Clock(TrainerCallback):  # type: ignore[misc]
        """CPU time of the training loop."""

        cpu = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Start."""
            self.cpu = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            """Stop."""
            self.cpu = time.process_time() - self.cpu

    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.model, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            train_dataset=Dataset.from_list(list(_listed(job))),
            callbacks=[clock],
            args=SFTConfig(
                output_dir=output,
                num_train_epochs=1,
                max_length=job.length,
                packing=True,
                packing_strategy="bfd",
                gradient_checkpointing=False,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=job.packs,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                weight_decay=0.01,
                optim="adamw_torch_fused",
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                logging_steps=1000,
                disable_tqdm=True,
                seed=0,
            ),
        )
        _warm_up(trainer.model)
        out, sys.stdout = sys.stdout, sys.stderr
        try:
            trainer.train()
        finally:
            sys.stdout = out
    return clock.cpu


def _listed(job: Job) -> Iterator[dict[str, list[int]]]:
    for index in range(len(job.rows)):
        tokens, supervised = job.row(index)
        labels = np.where(supervised, tokens, -100)
        yield {"input_ids": tokens.tolist(), "labels": labels.tolist()}


def run_rank(job: Job, method: str) -> list[list[float]]:
    """CPU seconds of every forward and backward pass of this rank, step by step."""
    import torch

    from mixgym.envs.learners.base import PlainStep
    from mixgym.envs.ranks import part

    learner = job.learner(10**6)  # one pack in every pass
    _warm_up(learner.model)
    torch.distributed.barrier()
    seconds: list[list[float]] = []
    losses, backward, lay_out = (
        learner._token_losses,
        learner._accelerator.backward,
        learner._micro_batches,
    )
    begin = [0.0]

    def micro_batches(packs: Any) -> Any:
        seconds.append([])
        return lay_out(packs)

    def forward(*given: Any, **named: Any) -> Any:
        begin[0] = time.process_time()
        return losses(*given, **named)

    def back(loss: Any, **named: Any) -> None:
        backward(loss, **named)
        seconds[-1].append(time.process_time() - begin[0])

    learner._micro_batches, learner._token_losses = micro_batches, forward
    learner._accelerator.backward = back
    learner.train(job.plan(method, 2), PlainStep(), 0.0)
    part()
    return seconds


def waiting(ranks: Sequence[list[list[float]]]) -> dict[str, float]:
    """Shares of waiting: if ranks meet after every pass, and after every step."""
    passes = [_lined_up([rank[step] for rank in ranks]) for step in range(len(ranks[0]))]
    by_pass = np.concatenate(passes, axis=1)
    by_step = np.stack([step.sum(1) for step in passes], axis=1)
    return {
        name: float(1 - found.mean(0).sum() / found.max(0).sum())
        for name, found in (("passes", by_pass), ("steps", by_step))
    }


def _lined_up(seconds: Sequence[list[float]]) -> Any:
    """float64[ranks, passes]; a rank without a pack in the last pass is idle."""
    most = max(map(len, seconds))
    return np.array([[*rank, *[0.0] * (most - len(rank))] for rank in seconds])


def _warm_up(model: Any) -> None:
    """One forward and backward pass, so that no run pays for first calls."""
    import torch

    model.train()
    ids = torch.arange(64)[None]
    model(input_ids=ids, use_cache=False, **_told(model)).logits.mean().backward()
    model.zero_grad(set_to_none=True)


def _told(model: Any) -> dict[str, Any]:
    from mixgym.envs.learners.attention import DOCUMENTS

    documents = model.config._attn_implementation == DOCUMENTS
    return {"document_lengths": (64,)} if documents else {}


def work(arguments: argparse.Namespace) -> None:
    """What a worker does; its answer is the last line of the standard output."""
    import torch

    torch.set_num_threads(1)
    job = Job(arguments)
    answer: Any
    if arguments.worker == "waiting":
        answer = run_rank(job, arguments.method)
    elif arguments.method == "trl":
        answer = run_trl(job)
    elif arguments.method in PLANNED:
        answer = run_planned(job, arguments.method)
    else:
        answer = run_padded(job, arguments.method == "sorted")
    print(json.dumps(answer))


def start(arguments: argparse.Namespace, folder: Path, **changes: Any) -> "subprocess.Popen[str]":
    """A worker."""
    given = vars(arguments) | {"folder": str(folder)} | changes
    words = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in given.items()
        if name not in ("json", "ranks") and value is not None
    ]
    ranks = changes.get("ranks", {})
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **ranks},
    )


def answer_of(worker: "subprocess.Popen[str]") -> Any:
    """The worker's answer."""
    out, _ = worker.communicate(timeout=3600)
    if worker.returncode:
        raise SystemExit(f"a worker failed ({worker.returncode})")
    return json.loads(out.strip().splitlines()[-1])


def two_ranks(arguments: argparse.Namespace, folder: Path, method: str) -> dict[str, float]:
    """Waiting of two processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        start(
            arguments,
            folder,
            worker="waiting",
            method=method,
            ranks={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    return waiting([answer_of(worker) for worker in workers])


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All methods in turn, again and again."""
    methods = [m for m in METHODS if m != "trl" or importlib.util.find_spec("trl")]
    job = Job(argparse.Namespace(**vars(arguments) | {"folder": str(folder)}))
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    waits: dict[str, list[dict[str, float]]] = {method: [] for method in PLANNED}
    for _ in range(arguments.repeats):
        for method in methods:
            seconds[method].append(
                answer_of(start(arguments, folder, worker="speed", method=method))
            )
        for method in PLANNED:
            waits[method].append(two_ranks(arguments, folder, method))
    quantiles = np.quantile(job.lengths, [0.5, 0.9, 0.99]).astype(int).tolist()
    return {
        "model": arguments.model,
        "rows": len(job.rows),
        "tokens": int(job.lengths.sum()),
        "supervised": job.supervised,
        "lengths": {"p50": quantiles[0], "p90": quantiles[1], "p99": quantiles[2]},
        "rate": {m: [job.supervised / s for s in found] for m, found in seconds.items()},
        "waiting": {
            m: {key: statistics.median(f[key] for f in found) for key in ("passes", "steps")}
            for m, found in waits.items()
        },
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="0.1m")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--packs", type=int, default=4, help="packs in a step")
    parser.add_argument("--batch", type=int, default=8, help="documents in a padded batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=["speed", "waiting"], help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(arguments, Path(name))
        report = measure(arguments, Path(name))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    lengths = report["lengths"]
    print(
        f"{report['model']}, {report['rows']} rows, {report['tokens']:,} tokens, "
        f"{report['supervised']:,} supervised; lengths p50 {lengths['p50']}, p90 {lengths['p90']}, "
        f"p99 {lengths['p99']}"
    )
    base = statistics.median(report["rate"]["packing"])
    for method, rates in report["rate"].items():
        middle = statistics.median(rates)
        print(
            f"{method:<10} {middle:>8,.0f} supervised tokens per CPU s "
            f"({min(rates):,.0f} to {max(rates):,.0f}), {middle / base:.2f} x packing"
        )
    for method, shares in report["waiting"].items():
        print(
            f"waiting of two processes, {method:<8} {100 * shares['passes']:.1f}% meeting after "
            f"every pass, {100 * shares['steps']:.1f}% after every step"
        )


if __name__ == "__main__":
    main()
