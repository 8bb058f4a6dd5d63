"""What decisions are paid: the input of a reward, from what was booked; batched or not."""

from dataclasses import dataclass

from mixgym.envs.arrays import FloatArray
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.probes import BACKWARD, BILEVEL_GAIN
from mixgym.envs.rewards import Reward, RewardInput, RewardKind, as_reward, penalised
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
