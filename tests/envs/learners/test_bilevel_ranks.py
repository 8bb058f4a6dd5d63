"""Bilevel steps on several ranks are those of one process."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.bilevel.rule import BilevelStep
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.sources.source import Source
from mixgym.envs.sources.splits import halve_reward


@pytest.mark.parametrize("estimator", ["lookahead", "paired"])
@pytest.mark.parametrize("degree", [1, 2])
def test_source_weights_and_models_are_those_of_one_process(
    run_ranks: Callable[..., list[Any]],
    make_learner: Callable[..., CausalLM],
    make_pack: Callable[..., Pack],
    make_plan: Callable[..., IntervalPlan],
    sources: tuple[Source, ...],
    estimator: Any,
    degree: int,
) -> None:
    halves = tuple(halve_reward(source, 0) for source in sources)
    steps = [
        [make_pack([(0, 0), (1, 2)]), make_pack([(0, 3)]), make_pack([(1, 4), (0, 5), (1, 6)])],
        [make_pack([(0, 7), (1, 8)]), make_pack([(1, 9), (0, 10)])],
        [make_pack([(0, 11), (1, 3)])],
    ]

    def train(shared: int) -> dict[str, Any]:
        parts = [[replace(p, sequence_parallel=shared) for p in step] for step in steps]
        learner = make_learner(change=lambda model: model.double(), sources=halves)
        options = BilevelOptions(estimator=estimator, every=1)
        rule = BilevelStep(options, ("first", "second"), np.ones(2), 3)
        report = learner.train(make_plan(parts), rule, 0.0)
        return {
            "weights": torch.cat([p.detach().ravel() for p in learner.model.parameters()]).numpy(),
            "step_loss": np.array(report.step_loss),
            "loss_sum": report.loss_sum,
            "logits": np.array(rule.logits),
            "gap": np.array(rule.gap),
        }

    wanted = train(1)
    for found in run_ranks(2, train, degree):
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-9, name
