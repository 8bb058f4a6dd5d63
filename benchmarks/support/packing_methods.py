"""The methods that ``benchmarks/packing.py`` compares; each runs in a process of its own.

    cd benchmarks; python -m support.packing_methods JOB

JOB is JSON: a method, what is asked of it (``speed`` or ``passes``), the folder that the other
script has prepared, and its sizes. The answer is the last line of the standard output.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.common import learner_of, quiet_libraries, saved_for_workers, sft_config

PLANNED = ("packing", "balanced", "hbp")
RANKS = 2
SHORT = 8  # the short group's packs, as a part of the longest


class Job:
    """What a worker was asked to do.

    Args:
        asked: ``method``, ``asked``, ``folder``, ``length`` and ``packs`` (tokens of a step, in
            packs of the longest length), ``batch`` (documents in a padded batch).
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        folder = Path(asked["folder"])
        self.model = folder / "model"
        self.sources, self.rows = saved_for_workers(folder / "data.pkl")
        self.length, self.packs, self.batch = asked["length"], asked["packs"], asked["batch"]
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
        from mixgym.envs.options import ModelOptions, TrainingOptions

        training = TrainingOptions(
            steps=self.steps, accumulation=passes, schedule="constant", warmup=0.0
        )
        return learner_of(self.model, self.sources, self.length, ModelOptions(), training)

    def plan(self, method: str, processes: int) -> Any:
        """The rows as an interval plan, laid out as the data plane does."""
        from mixgym.envs.interval_plan import IntervalPlan, Pack
        from mixgym.envs.packing.balance import Balance
        from mixgym.envs.packing.grouping.groups import Cluster, Group
        from mixgym.envs.packing.planner import PlanConfig, make_plan
        from mixgym.envs.spaces.mixture import Mixture

        one = (Group(self.length),)
        groups = (Group(self.length // SHORT), *one) if method == "hbp" else one
        config = PlanConfig(
            groups,
            Cluster(processes, self.length * self.packs),
            balance=Balance(sort=method != "packing"),
            spread=True,
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
    """CPU seconds of SFTTrainer's loop; its packing was done before."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    quiet_libraries()

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
            args=sft_config(
                output,
                job.length,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=job.packs,
                learning_rate=1e-3,
                logging_steps=1000,
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
    """CPU seconds of every forward and backward pass of this rank, step by step.

    A full step takes as many passes as the rank has packs of the longest length, whatever the
    length of its packs.
    """
    import torch

    from mixgym.envs.learners.base import PlainStep
    from mixgym.envs.ranks import part

    learner = job.learner(max(1, job.packs // RANKS))
    _warm_up(learner.model)
    torch.distributed.barrier()
    seconds: list[list[float]] = []
    steps, language = learner.steps.halves, learner.trained.language
    losses, backward, lay_out = language.token_losses, torch.Tensor.backward, steps.micro_batches
    begin = [0.0]

    def micro_batches(packs: Any) -> Any:
        seconds.append([])
        return lay_out(packs)

    def forward(*given: Any, **named: Any) -> Any:
        begin[0] = time.process_time()
        return losses(*given, **named)

    def back(loss: Any, *given: Any, **named: Any) -> None:
        backward(loss, *given, **named)
        seconds[-1].append(time.process_time() - begin[0])

    steps.micro_batches, language.token_losses = micro_batches, forward
    torch.Tensor.backward = back  # type: ignore[assignment]
    learner.train(job.plan(method, RANKS), PlainStep(), 0.0)
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    part()
    return seconds


def _warm_up(model: Any) -> None:
    """A forward and backward pass, so that no run pays for first calls."""
    import torch

    model.train()
    ids = torch.arange(64)[None]
    model(input_ids=ids, use_cache=False, **_told(model)).logits.mean().backward()
    model.zero_grad(set_to_none=True)


def _told(model: Any) -> dict[str, Any]:
    from mixgym.envs.learners.models.attention import DOCUMENTS

    documents = model.config._attn_implementation == DOCUMENTS
    return {"document_lengths": (64,)} if documents else {}


def main() -> None:
    """Do what the first argument asks for."""
    import torch

    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    job, method = Job(asked), asked["method"]
    answer: Any
    if asked["asked"] == "passes":
        answer = run_rank(job, method)
    elif method == "trl":
        answer = run_trl(job)
    elif method in PLANNED:
        answer = run_planned(job, method)
    else:
        answer = run_padded(job, method == "sorted")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
