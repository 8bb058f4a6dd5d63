"""Fine-tuning of any causal LM of transformers, in one process or several.

Rows are packed without padding and never see each other; logits are computed only where a
supervised token is predicted. Decisions, sampling and records are somebody else's; here the parts
of a learner are put together:

- :class:`~mixgym.envs.learners.models.trained_model.TrainedModel`: what is trained, saved, loaded;
- :class:`~mixgym.envs.learners.optimisation.Optimisation`: AdamW, schedule, clipping;
- :class:`~mixgym.envs.learners.paired_steps.PairedSteps`: what step rules are given;
- :class:`~mixgym.envs.learners.held_out.HeldOut`: evaluations;
- :class:`~mixgym.envs.learners.probes.losses.Probes`: probes.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import RunError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import Evaluation, ProbeResult, StepRule, TrainReport
from mixgym.envs.learners.held_out import HeldOut
from mixgym.envs.learners.models.trained_model import TrainedModel
from mixgym.envs.learners.optimisation import Optimisation
from mixgym.envs.learners.paired_steps import PairedSteps
from mixgym.envs.learners.parallel.data_parallel import DataParallel
from mixgym.envs.learners.parallel.processes import join
from mixgym.envs.learners.probes.losses import Probes
from mixgym.envs.learners.probes.probed import Probed
from mixgym.envs.learners.steps import OptimiserSteps
from mixgym.envs.options import ModelOptions, TrainingOptions
from mixgym.envs.sources.source import Source

OPTIMIZER_FILE = "optimizer.pt"


class CausalLM:
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

    Attributes:
        trained, optimisation, steps, held_out, probes: the parts, see above.

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

        if torch.get_num_threads() != model_options.threads:
            torch.set_num_threads(model_options.threads)
        device = join()
        self.tokenizer, self.sources = tokenizer, sources
        self.shape = (len(sources), sources[0].n_strata)
        self._max_length, self._training, self._seed = max_length, training, seed
        self._make_reference = make_reference
        trained = TrainedModel(make_model, tokenizer, model_options, device, max_length)
        self._ranks = DataParallel(trained.module.config)
        self._ranks.check_weights(trained.module)
        self._assemble(trained, HeldOut(sources, max_length), probe_rows)

    def _assemble(self, trained: TrainedModel, held_out: HeldOut, probe_rows: int) -> None:
        """Put the parts around a model."""
        self.trained, self.held_out = trained, held_out
        self.optimisation = Optimisation(trained, self._training)
        steps = OptimiserSteps(trained, self.optimisation, self.sources, self._ranks, self._seed)
        self.steps = PairedSteps(steps, held_out, self._max_length)
        self.probes = self.make_probes(probe_rows, self._seed)

    def make_probes(self, per_stratum: int, seed: int) -> Probes:
        """Probes of this model that read rows of their own, chosen by ``seed``."""
        probed = Probed(
            self.trained, self.optimisation, self.sources, self._max_length, per_stratum, seed
        )
        return Probes(probed, self._reference_losses if self._make_reference else None)

    def _reference_losses(self) -> FloatArray:
        assert self._make_reference is not None
        return self._make_reference().probes.token_losses(bare=False)

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.trained.module

    @property
    def attention(self) -> str:
        """The attention implementation that was chosen."""
        return self.trained.language.attention

    @property
    def device(self) -> str:
        """Where the model computes."""
        return str(self.trained.language.device)

    def reset(self) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.trained.reset()
        self.optimisation.reset()

    def train(self, plan: IntervalPlan, step_rule: StepRule, progress: float) -> TrainReport:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        loss_sum = np.zeros(self.shape)
        losses, norms, rates = [], [], []
        share = self._interval_share(plan)
        self._ranks.check_plan(plan)
        self.model.train()
        for index, packs in enumerate(plan.steps):
            self.optimisation.progress = progress + share * index / max(len(plan.steps), 1)
            result = step_rule.step(self.steps, packs)
            loss_sum += result.loss_sum
            losses.append(result.loss)
            norms.append(result.gradient_norm)
            rates.append(self.optimisation.optimizer.param_groups[0]["lr"])
        return TrainReport(
            loss_sum,
            plan.supervised,
            plan.tokens,
            plan.rows,
            tuple(losses),
            tuple(norms),
            rates[-1] if rates else self.optimisation.optimizer.param_groups[0]["lr"],
            math.fsum(rates),
        )

    def _interval_share(self, plan: IntervalPlan) -> float:
        """The share of the budget that the plan uses."""
        used = {
            "steps": len(plan.steps),
            "supervised_tokens": float(plan.supervised.sum()),
            "tokens": float(plan.tokens.sum()),
        }[self._training.budget_unit]
        return used / self._training.budget

    def accumulate(self, packs: tuple[Pack, ...]) -> tuple[FloatArray, float]:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        return self.steps.accumulate(packs)

    def apply(self) -> float:
        """See :class:`~mixgym.envs.learners.base.Trainable`."""
        return self.steps.apply()

    def evaluate(self, split: str) -> Evaluation:
        """See :class:`~mixgym.envs.learners.base.Learner`.

        Raises:
            DivergenceError: if a loss is not finite, naming the source.
        """
        return self.held_out.evaluate(split, self.trained.language, self._ranks)

    def begin_probes(self, names: Sequence[str]) -> int:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return self.probes.begin(names)

    def probe(self, name: str) -> ProbeResult:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return self.probes.measure(name)

    def snapshot(self) -> dict[str, Any]:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        return {"model": self.trained.state(), **copy.deepcopy(self._state())}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        self.trained.set_state(state["model"])
        self._set_state(state)

    def fork(self) -> "CausalLM":
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        if self._ranks.world > 1:
            raise RunError(
                f"a model that {self._ranks.world} processes train cannot be forked: start one"
            )
        other = copy.copy(self)
        other._assemble(self.trained.fork(), self.held_out, self.probes.probed.per_stratum)
        other._set_state(self._state())
        return other

    def save(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        import torch

        self.save_model(folder)
        torch.save(self._state(), folder / OPTIMIZER_FILE)

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer, loadable by ``from_pretrained`` without this package."""
        self.trained.save(folder)

    def load(self, folder: Path) -> None:
        """See :class:`~mixgym.envs.learners.base.Learner`."""
        import torch

        self.trained.load(folder)
        # to CPU, whatever device wrote it; the optimiser moves it to where its parameters are
        state = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        self._set_state(state)

    def _state(self) -> dict[str, Any]:
        """All but the weights; the optimiser's tensors are not copies."""
        return {**self.optimisation.state(), "probes": self.probes.state()}

    def _set_state(self, state: dict[str, Any]) -> None:
        self.optimisation.set_state(state)
        self.probes.set_state(state["probes"])
