"""The options of the bilevel step rule, as validated plain data."""

from typing import Literal

from pydantic import Field, model_validator

from mixgym.envs.learners.kinds import LEARNERS, LearnerName
from mixgym.envs.strict_options import Options

EstimatorName = Literal["auto", "alignment", "lookahead", "lazy_pair", "paired", "central"]
TRAINED_COPIES = ("lazy_pair", "paired", "central")
"""Estimators that train a second model; the others only look at the first from nearby."""
_EVERY_STEP = ("paired", "central")


class BilevelOptions(Options):
    """How source weights are learnt while the model trains.

    Example:
        >>> BilevelOptions(estimator="paired").period
        1
        >>> BilevelOptions().period
        10
    """

    estimator: EstimatorName = Field(
        "auto",
        description="how the weights' gradient is found, cheapest to dearest: alignment, "
        "lookahead, lazy_pair, paired, central; auto: alignment",
    )
    act: Literal["sampling", "loss"] = Field(
        "sampling",
        description="the weights set what is sampled, or weigh the loss under natural sampling",
    )
    alpha: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="penalty: the copy is pulled 1/alpha of the way",
    )
    alpha_growth: float = Field(
        0.0, ge=0, lt=1, description="alpha grows as (1 + step)^this; 0: constant; theory: 1/7"
    )
    travel: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="logits that a weight may move over the run, most of them early",
    )
    update: Literal["auto", "adam", "mirror", "gradient"] = Field(
        "auto",
        description="adam: each logit by its own running scale; mirror: all by one scale, "
        "multiplicative on the weights; gradient: as it is; auto: mirror for alignment and "
        "lookahead, adam for second models, gradient on curves",
    )
    clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest entry of the weights' gradient"
    )
    decay: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="pull of the logits back to the prior (null: 0, and 0.1 on curves)",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="steps between updates of the weights (null: 1 for paired and "
        "central, else 10)",
    )
    pair_steps: int = Field(5, ge=1, description="lazy_pair: paired steps before each update")
    horizon: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="alignment, lookahead: steps of the optimiser that the pull stands for",
    )
    precondition: bool = Field(
        True, description="alignment, lookahead: scale the pull as the optimiser scales its steps"
    )
    derivative: Literal["difference", "forward"] = Field(
        "difference",
        description="alignment: a central difference, or forward mode, which takes more memory but "
        "does not round where precision is bf16",
    )
    validation_packs: int | None = Field(
        None, ge=1, description="packs in a validation batch (null: as in a training step)"
    )
    look: Literal["auto", "batch", "even"] = Field(
        "auto",
        description="rows that the gap is measured on: batch: those of the training step; even: "
        "as many tokens of every source, drawn anew each time; auto: even for alignment and "
        "lookahead, else batch",
    )
    rows: int | None = Field(
        None, ge=1, description="training rows of each source that are used (null: all)"
    )
    storage: Literal["auto", "full", "difference", "low_rank", "top"] = Field(
        "auto",
        description="what is kept of the second model; auto: difference for paired and central, "
        "full for lazy_pair",
    )
    rank: int = Field(8, ge=1, description="storage low_rank: rank of every matrix's difference")
    top: int = Field(1, ge=1, description="storage top: blocks, counted from the output")
    blocks: int | None = Field(
        None, ge=1, description="train only so many blocks at a time, drawn anew every block_period"
    )
    block_period: int = Field(20, ge=1, description="steps between two draws of blocks")
    block_choice: Literal["uniform", "importance"] = Field(
        "uniform", description="importance: by the running norm of a block's gradient"
    )
    outside_blocks: Literal["trained", "frozen"] = Field(
        "trained", description="embeddings, final norm and head, while blocks are drawn"
    )
    keep_states: bool = Field(
        True, description="keep the optimiser's state of blocks that are frozen again"
    )
    check: bool = Field(
        False, description="debug: compare every gradient of the weights with autograd"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "BilevelOptions":
        if self.storage not in ("auto", "full") and self.estimator not in TRAINED_COPIES:
            raise ValueError(
                f"storage={self.storage} is for estimators with a second model "
                f"({', '.join(TRAINED_COPIES)}), not for {self.estimator}"
            )
        if self.estimator == "lazy_pair" and self.pair_steps > self.period:
            raise ValueError(
                f"pair_steps={self.pair_steps} does not fit between updates every {self.period} "
                "steps: raise every, or lower pair_steps"
            )
        return self

    @property
    def period(self) -> int:
        """Steps between updates of the weights."""
        if self.every is not None:
            return self.every
        return 1 if self.estimator in _EVERY_STEP else 10

    def on(self, learner: LearnerName) -> "BilevelOptions":
        """The same with everything that is left to the learner and the estimator filled in.

        A guess from nearby sees few rows, rarely, so it looks at every source, and moves as far as
        its mean stands out of its noise; two models that train apart for long differ by their
        noise, so the difference is trained instead. A perturbation has to be as large as a step of
        the optimiser, and then curvature raises the losses most that validation depends on most: a
        central difference is free of it, at the same cost, and the default. Learning curves give
        exact gaps in nats per budget: there the gradient is taken as it is (chosen on the
        validation tasks).

        >>> BilevelOptions().on("causal_lm").estimator, BilevelOptions().on("curves").update
        ('alignment', 'gradient')
        >>> BilevelOptions(estimator="paired").on("causal_lm").storage
        'difference'
        """
        estimator = "alignment" if self.estimator == "auto" else self.estimator
        near = estimator not in TRAINED_COPIES
        exact = LEARNERS[learner].closed_form
        update = "gradient" if exact else "mirror" if near else "adam"
        defaults = {
            "estimator": estimator,
            "update": update,
            "look": "even" if near else "batch",
            "storage": "difference" if estimator in _EVERY_STEP else "full",
            "decay": 0.1 if exact else 0.0,
        }
        open_ = {n: v for n, v in defaults.items() if getattr(self, n) in ("auto", None)}
        return self.model_copy(update=open_)
