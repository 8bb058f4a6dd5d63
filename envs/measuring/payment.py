"""What decisions are paid: the input of a reward, from what was booked; batched or not."""

from dataclasses import dataclass, replace

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.options import EnvironmentOptions, PenaltyOptions
from mixgym.envs.probes import BACKWARD, BILEVEL_GAIN
from mixgym.envs.rewards import SMALLEST, Reward, RewardInput, RewardKind, as_reward, given
from mixgym.envs.spaces.mixture import last_sum
from mixgym.envs.spaces.view import View


@dataclass(frozen=True)
class Spent:
    """What the interval of a decision took.

    Attributes:
        tokens: float64[...], that were trained on, prompts included.
        probe_tokens: float64[...], of a pass forward, that the decision's probes took.
        seconds: float64[...], of training, as the cost model predicts them; 1 where every decision
            costs the same.
        draws: float64[..., K + 1], uniform numbers of the decision, for rewards that draw.
    """

    tokens: FloatArray | float
    probe_tokens: FloatArray | float = 0.0
    seconds: FloatArray | float = 1.0
    draws: FloatArray | None = None


def reward_input(
    view: View, spent: Spent, kind: RewardKind, options: EnvironmentOptions
) -> RewardInput:
    """What the reward of the decision that ``view`` shows is computed from."""
    probes: dict[str, FloatArray | None] = {}
    if kind.probes and view.probes is not None:
        top, inner = options.reward_sources, options.reward_strata
        probes["source_probe"] = as_reward(top, view.probes[top])
        probes["stratum_probe"] = as_reward(inner, view.probes[inner])
        probes["draws"] = spent.draws
    if kind.gains and view.probes is not None:
        probes["gains"] = view.probes[BILEVEL_GAIN]
    return RewardInput(
        before=view.nll_before,
        after=view.nll,
        targets=view.targets,
        start=view.nll_start,
        weight=view.weight,
        strata=view.cell_weight,
        prior=view.prior,
        prior_strata=view.cell_prior,
        epochs=view.epochs,
        probe_cost=spent.probe_tokens / (BACKWARD * spent.tokens),
        seconds=spent.seconds,
        **probes,
    )


def paid(view: View, spent: Spent, kind: RewardKind, options: EnvironmentOptions) -> Reward:
    """The reward of the decision that ``view`` shows, less the penalties."""
    seen = reward_input(view, spent, kind, options)
    return penalised(kind.compute(seen), seen, options.penalties)


def penalised(reward: Reward, seen: RewardInput, penalties: PenaltyOptions) -> Reward:
    """The reward less what ``penalties`` ask for, each a component of its own."""
    taken: dict[str, FloatArray | float] = {}
    if penalties.kl_prior:
        taken["kl_prior"] = -penalties.kl_prior * _mixture_kl(seen)
    if penalties.epochs:
        over = np.maximum(given(seen.epochs) - penalties.epoch_cap, 0.0)
        taken["epochs"] = -penalties.epochs * last_sum(over)
    if penalties.probe_cost:
        taken["probe_cost"] = -penalties.probe_cost * seen.probe_cost
    if not taken:
        return reward
    components = {**reward.components, **taken}
    return replace(reward, value=sum(components.values()), components=components)


def _mixture_kl(seen: RewardInput) -> FloatArray:
    """float64[...], KL of the mixture from the prior, over all (source, stratum), in nats."""
    weight, strata = given(seen.weight), given(seen.strata)
    top = last_sum(weight * _log_quotient(weight, given(seen.prior)))
    inner = last_sum(strata * _log_quotient(strata, given(seen.prior_strata)))
    return top + last_sum(weight * inner)


def _log_quotient(weights: FloatArray, prior: FloatArray) -> FloatArray:
    return np.log(np.maximum(weights, SMALLEST)) - np.log(np.maximum(prior, SMALLEST))
