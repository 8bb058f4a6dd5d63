"""Fine-tuning of any causal LM of transformers, in one process or several, through accelerate.

Rows are packed without padding and never see each other; logits are computed only where a
supervised token is predicted; the loss of a step is sum of w * token loss / sum of w over all its
packs, micro-steps and ranks. Decisions, sampling and records are somebody else's.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import DivergenceError, RunError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import Evaluation, StepRule, TrainReport
from mixgym.envs.learners.batching import Batch, evaluation_packs, make_batch
from mixgym.envs.learners.models.attention import DOCUMENTS, choose_attention, packed_forward
from mixgym.envs.learners.models.precision import check_onednn, evaluation_mode, matmul
from mixgym.envs.learners.pairing import PairedTraining
from mixgym.envs.learners.parallel.data_parallel import (
    DataParallel,
    can_recompute,
    recompute_layers,
)
from mixgym.envs.learners.parallel.sequence_parallel import WHOLE, shard_batch
from mixgym.envs.learners.probes.losses import ProbedModel
from mixgym.envs.options import ModelOptions, TrainingOptions
from mixgym.envs.random_streams import stream
from mixgym.envs.ranks import sum_gradients, summed
from mixgym.envs.sources.source import Source

if TYPE_CHECKING:
    import torch

OPTIMIZER_FILE = "optimizer.pt"
KEPT_PARAMETERS = 20_000_000  # models up to this size keep a copy of their starting weights
EVALUATION_TOKENS = 4096  # in one forward pass of an evaluation, at most
EVALUATION_LOGITS = 50_000_000  # likewise: bounds its memory where the vocabulary is large


class CausalLM(PairedTraining, ProbedModel):
    """A causal LM with its optimiser; a :class:`~mixgym.envs.learners.base.Learner`.

    Args:
        make_model: gives a causal LM of transformers, in float32, always with the same weights.
        tokenizer: saved beside the model.
        sources: whose rows the plans refer to.
        max_length: tokens in a row, at most.
        model_options: attention, precision, checkpointing, threads.
        training: optimiser, schedule, clipping, accumulation.
        seed: names the dropout stream, and that of the probe rows.
        probe_rows: rows per stratum that probes read.
        make_reference: gives the learner that holds the reference model.

    Raises:
        ConfigError: if ``fp32_matmul=onednn`` would round on this machine.
        RunError: if ranks start from different weights.
        PackingError: if no attention implementation keeps documents of this model apart.
    """

    def __init__(
        self,
        make_model: Callable[[], Any],
        tokenizer: Any,
        sources: Sequence[Source],
        *,
        max_length: int,
        model_options: ModelOptions,
        training: TrainingOptions,
        seed: int,
        probe_rows: int = 8,
        make_reference: "Callable[[], CausalLM] | None" = None,
    ) -> None:
        import torch
        from accelerate import Accelerator

        if torch.get_num_threads() != model_options.threads:
            torch.set_num_threads(model_options.threads)
        # no mixed precision here: accelerate allows one per process, two learners may differ
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._bf16 = model_options.precision == "bf16"
        self._matmul = model_options.fp32_matmul
        if self._matmul == "onednn":
            check_onednn()
        self.device = str(self._accelerator.device)
        self.tokenizer = tokenizer
        self.sources = sources
        self.shape = (len(sources), sources[0].n_strata)
        self._max_length = max_length
        self._training = training
        self._seed = seed
        self._evaluations: dict[str, list[Batch]] = {}
        self.begin_probing(probe_rows, make_reference)
        self._make_model = make_model
        self.model = make_model().to(self._accelerator.device)
        self.attention = choose_attention(
            self.model, model_options.attention, self._accelerator.device.type, max_length
        )
        self._ranks = DataParallel(self.model.config)
        self._ranks.check_weights(self.model)
        self._recomputes = model_options.gradient_checkpointing
        self._recomputed = 0  # layers, where packs say how many
        if self._recomputes:
            can_recompute(self.model)
        self._dropout = any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules()
        ) or any(rate > 0 for rate in _dropout_rates(self.model.config))
        self._optimizer = self._make_optimizer()
        self._steps = 0
        self._progress = 0.0
        self._start = self._copy_if_small()

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.model.load_state_dict(self._start or self._make_model().state_dict())
        self._optimizer = self._make_optimizer()
        self._steps = 0
        self._progress = 0.0

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        loss_sum = np.zeros(self.shape)
        losses, norms = [], []
        share = self._interval_share(plan)
        self._ranks.check_plan(plan)
        self.model.train()
        for index, packs in enumerate(plan.steps):
            self._progress = progress + share * index / max(len(plan.steps), 1)
            result = step_rule.step(self, packs)
            loss_sum += result.loss_sum
            losses.append(result.loss)
            norms.append(result.gradient_norm)
        return TrainReport(
            loss_sum,
            plan.supervised,
            plan.tokens,
            plan.rows,
            tuple(losses),
            tuple(norms),
            self._optimizer.param_groups[0]["lr"],
        )

    def accumulate(self, packs: tuple[Pack, ...]) -> tuple[FloatArray, float]:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        loss_sum, loss = self._accumulate(self._micro_batches(packs), packs[0].normaliser)
        return summed(loss_sum), loss

    def _accumulate(
        self, batches: list[Batch], normaliser: float | None = None
    ) -> tuple[FloatArray, float]:
        """Add the gradient of a global batch, whose part of this rank ``batches`` are.

        Returns:
            (loss sums [K, G] of this rank, loss of the global batch).
        """
        import torch

        if normaliser is None:
            weights = sum(float(batch.weights.sum(dtype=torch.float64)) for batch in batches)
            normaliser = float(summed(np.array([weights]))[0])
        loss_sum, total = np.zeros(self.shape), 0.0
        with self._summed_over_ranks():
            for part, batch in enumerate(batches):
                with self._dropout_stream(part), matmul(self._matmul):
                    losses = self._token_losses(batch)
                    loss = (losses * batch.weights).sum() / normaliser
                    value = float(loss.detach())
                    if not math.isfinite(value) and self._ranks.world == 1:
                        self._refuse(value)
                    self._accelerator.backward(loss)
                loss_sum += self._by_cell(losses, batch)
                total += value
        total = float(summed(np.array([total]))[0])
        if not math.isfinite(total):  # on every rank, so that none waits for another
            self._refuse(total)
        return loss_sum, total

    def _refuse(self, loss: float) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        raise DivergenceError(f"the training loss is {loss} at step {self._steps + 1}")

    @contextmanager
    def _summed_over_ranks(self) -> Iterator[None]:
        """Gradients added inside are summed over the ranks; those from before stay as they are."""
        if self._ranks.world == 1:
            yield
            return
        parameters = list(self.model.parameters())
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        yield
        sum_gradients(parameters)
        for parameter, old in zip(parameters, before, strict=True):
            if old is not None:
                parameter.grad = old if parameter.grad is None else parameter.grad + old

    def apply(self) -> float:
        """See :class:`~mixgym.envs.learners.base.Trainable`.

        Raises:
            DivergenceError: if the gradient is not finite; nothing was changed.
        """
        import torch

        limit = self._training.clip if self._training.clip is not None else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise DivergenceError(f"the gradient norm is {norm} at step {self._steps + 1}")
        rate = self.rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        return norm

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        Raises:
            DivergenceError: if a loss is not finite, naming the source.
        """
        import torch

        batches = self._evaluation_batches(split)
        loss_sum, supervised = np.zeros(self.shape), np.zeros(self.shape, np.int64)
        with evaluation_mode(self.model), torch.no_grad(), matmul(self._matmul):
            for batch in batches[self._ranks.rank :: self._ranks.world]:
                loss_sum += self._by_cell(self._token_losses(batch), batch)
                supervised += np.bincount(batch.cells, minlength=supervised.size).reshape(
                    self.shape
                )
        loss_sum = summed(loss_sum)
        supervised = summed(supervised.astype(np.float64)).astype(np.int64)
        bad = np.flatnonzero(~np.isfinite(loss_sum).all(-1))
        if bad.size:
            name = self.sources[bad[0]].name
            raise DivergenceError(f"the {split} loss of source {name!r} is not finite")
        return Evaluation(loss_sum, supervised, sum(batch.tokens for batch in batches))

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "steps": self._steps,
            "progress": self._progress,
            "probes": self.probe_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.model.load_state_dict(state["model"])
        self._optimizer = self._make_optimizer()
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._steps = int(state["steps"])
        self._progress = float(state["progress"])
        self.set_probe_state(state["probes"])

    def fork(self) -> "CausalLM":
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        if self._ranks.world > 1:
            raise RunError(
                f"a model that {self._ranks.world} processes train cannot be forked: start one"
            )
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        other._optimizer = other._make_optimizer()
        other._optimizer.load_state_dict(copy.deepcopy(self._optimizer.state_dict()))
        return other

    def save(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        import torch

        self.save_model(folder)
        state = {
            "optimizer": self._optimizer.state_dict(),
            "steps": self._steps,
            "progress": self._progress,
            "probes": self.probe_state(),
        }
        torch.save(state, folder / OPTIMIZER_FILE)

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer, loadable by ``from_pretrained`` without this package."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        import torch
        from transformers import AutoModelForCausalLM

        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())
        state = torch.load(folder / OPTIMIZER_FILE, weights_only=True)
        self._optimizer = self._make_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
        self._steps = int(state["steps"])
        self._progress = float(state["progress"])
        self.set_probe_state(state["probes"])

    def _copy_if_small(self) -> "dict[str, torch.Tensor] | None":
        """The starting weights: kept for quick resets, or built anew where that costs memory."""
        if self.model.num_parameters() > KEPT_PARAMETERS:
            return None
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _interval_share(self, plan: IntervalPlan) -> float:
        """The share of the budget that the plan uses."""
        if self._training.supervised_tokens is not None:
            return float(plan.supervised.sum()) / self._training.supervised_tokens
        return len(plan.steps) / self._training.steps

    def _micro_batches(self, packs: tuple[Pack, ...]) -> list[Batch]:
        """This rank's forward passes: as few as accumulation allows, or one a pack under a mask."""
        self._recompute(packs[0].checkpointed_layers)
        packs, shard = self._ranks.mine(packs)
        if not packs:
            return []
        splits = [source.splits["train"] for source in self.sources]
        wanted = self._training.accumulation if self._joins else len(packs)
        parts = np.array_split(np.arange(len(packs)), min(wanted, len(packs)))
        batches = [
            make_batch([packs[i] for i in part], splits, self.shape[1], self.device)
            for part in parts
        ]
        return [shard_batch(batch, shard) for batch in batches]

    def _recompute(self, layers: int) -> None:
        """Let the first layers recompute their activations, as many as the packs ask for."""
        if self._recomputes or layers == self._recomputed:
            return
        if not self._recomputed:
            can_recompute(self.model)
        recompute_layers(self.model, layers)
        self._recomputed = layers

    def _token_losses(self, batch: Batch, model: Any = None) -> "torch.Tensor":
        """float32[n], NLL of every supervised token, under the model or another one."""
        import torch

        with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=self._bf16):
            logits = packed_forward(
                self.model if model is None else model,
                batch.input_ids,
                batch.position_ids,
                batch.document_lengths,
                logits_to_keep=batch.predictors,
                sequence=batch.sequence or WHOLE,
            )
        wide = logits[0] if logits.dtype == torch.float64 else logits[0].float()
        return torch.nn.functional.cross_entropy(wide, batch.labels, reduction="none")

    def _by_cell(self, losses: "torch.Tensor", batch: Batch) -> FloatArray:
        values = losses.detach().to("cpu").double().numpy()
        sums = np.bincount(batch.cells, values, minlength=self.shape[0] * self.shape[1])
        return sums.astype(np.float64).reshape(self.shape)

    def _evaluation_batches(self, split: str) -> list[Batch]:
        if split not in self._evaluations:
            packs = evaluation_packs(self.sources, split, self._max_length)
            splits = [source.splits[split] for source in self.sources]
            self._evaluations[split] = [
                make_batch(packs[i : i + together], splits, self.shape[1], self.device)
                for together in [self._packs_together()]
                for i in range(0, len(packs), together)
            ]
        return self._evaluations[split]

    def _packs_together(self) -> int:
        """Packs in one forward pass of an evaluation, all of whose tokens may be supervised."""
        if not self._joins:
            return 1
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        tokens = min(EVALUATION_TOKENS, EVALUATION_LOGITS // vocabulary)
        return max(1, tokens // self._max_length)

    @property
    def _joins(self) -> bool:
        """Whether packs can share a row at no cost (no mask that grows with its square)."""
        return self.attention == DOCUMENTS or "flash" in self.attention

    def _make_optimizer(self) -> "torch.optim.AdamW":
        return self._optimizer_of([p for p in self.model.parameters() if p.requires_grad])

    def _optimizer_of(self, parameters: "list[torch.Tensor]") -> "torch.optim.AdamW":
        """AdamW; no decay on biases and norms."""
        import torch

        decayed = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self._training.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self._training.learning_rate,
            betas=self._training.betas,
            fused=self._accelerator.device.type in ("cpu", "cuda"),
        )

    @contextmanager
    def _dropout_stream(self, part: int) -> Iterator[None]:
        """Dropout draws from (seed, step, micro-step); the global stream stays untouched."""
        if not self._dropout:
            yield
            return
        import torch

        mine = () if self._ranks.world == 1 else (f"rank {self._ranks.rank}",)
        names = ("dropout", str(self._steps), str(part), *mine)
        seed = stream(self._seed, *names).integers(2**63)
        devices = [] if self.device == "cpu" else [self.device]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(seed))
            yield


def _dropout_rates(config: Any) -> list[float]:
    return [
        value
        for name, value in config.get_text_config().to_dict().items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float)
    ]
