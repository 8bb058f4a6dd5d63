"""One word -> an agent: its factory, what it needs, what it is. Light: imports nothing heavy."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mixgym.agents.mixers.needs import cost
from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Algorithm:
    """A registered scheduler.

    Attributes:
        summary: one line for ``mixgym list algorithms``.
        factory: ``module:name`` of a callable ``(env, **options) -> agent``.
        requires: the environment that it needs, whatever its options.
        needs_from: ``module:name`` of a function ``options -> Requires``, for one whose needs
            depend on its options.
    """

    summary: str
    factory: str
    requires: Requires
    needs_from: str | None = None

    def load(self) -> Callable[..., Any]:
        """Import the factory."""
        return _found(self.factory)

    def needs(self, options: Mapping[str, Any]) -> Requires:
        """The environment that it needs with these options.

        Raises:
            ConfigError: for options that it does not take.
        """
        if self.needs_from is None:
            return self.requires
        needs: Requires = _found(self.needs_from)(dict(options))
        return needs


def _found(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


TRAINED = Requires()
"""What a trained agent needs."""

RULE = Requires(action="weights", observation="dict", signals=True)
"""What a rule needs."""


def _rule(name: str, summary: str) -> Algorithm:
    return Algorithm(summary, f"mixgym.agents.rules:{name}", RULE)


_REFERENCE = Requires(action="weights", observation="dict", signals=True, reference=True)


def _mixer(
    name: str, summary: str, requires: Requires = RULE, needs: str | None = None
) -> Algorithm:
    path = None if needs is None else f"mixgym.agents.mixers.needs:{needs}"
    fixed: Requires = requires if path is None else _found(path)({})
    spent = cost(fixed)
    whole = f"{summary} ({spent})" if spent else summary
    return Algorithm(whole, f"mixgym.agents.mixers.{name}", fixed, path)


def _hbo(name: str, summary: str, needs: str) -> Algorithm:
    factory, needs_from = f"mixgym.agents.hbo.{name}", f"mixgym.agents.hbo.settings:{needs}"
    return Algorithm(summary, factory, RULE, needs_from)


def _trained(summary: str) -> Algorithm:
    whole = f"{summary}; train it first (mixgym train --algo NAME)"
    return Algorithm(whole, "mixgym.agents.registry:needs_training", TRAINED)


ALGORITHMS = {
    "uniform": _rule("Uniform", "every trainable source alike"),
    "proportional": _rule("Proportional", "sources by their size"),
    "temperature": _rule("Temperature", "size ** (1 / tau): between proportional and uniform"),
    "fixed": _rule("Fixed", "weights that you give"),
    "scripted": _rule("Scripted", "weights along the budget, linear between the points you give"),
    "easy_to_hard": _mixer(
        "curricula:EasyToHard",
        "a curriculum: strata from the easiest to the hardest along the budget",
    ),
    "hard_to_easy": _mixer("curricula:HardToEasy", "the reverse curriculum, as a control"),
    "loss_proportional": _mixer(
        "minimax:LossProportional", "sources by their training loss; loves noise"
    ),
    "exp3": _mixer(
        "bandits:Exp3",
        "a bandit paid by the fall of held-out loss; ODM as variant: paper or released",
    ),
    "ucb": _mixer("bandits:Ucb", "discounted upper confidence bounds on the fall of held-out loss"),
    "ado": _mixer("ado:Ado", "ADO: a scaling law per source, fitted on the way; costs nothing"),
    "aioli": _mixer("aioli:Aioli", "Aioli: rounds that try perturbed mixtures, then play"),
    "doremi": _mixer(
        "minimax:DoReMi", "DoReMi: minimax on the excess over a reference model", needs="doremi"
    ),
    "rho_loss": _mixer(
        "minimax:RhoLoss", "RHO-LOSS: sources by their excess over a reference model", _REFERENCE
    ),
    "doge": _mixer(
        "alignment:DoGE", "DoGE: gradients that point at the targets gain weight", needs="doge"
    ),
    "less": _mixer(
        "alignment:Less", "LESS by source: Adam-scaled projected gradients", needs="less"
    ),
    "multidds": _mixer(
        "source_actor:MultiDDS", "MultiDDS: cosines with held-out gradients", needs="multidds"
    ),
    "mos": _mixer(
        "source_actor:MoS", "MoS: likeness of embeddings, or perplexity ratios", needs="mos"
    ),
    "scalebio": Algorithm(
        "ScaleBiO: leaves the weights to the bilevel step rule, from the prior on",
        "mixgym.agents.scalebio:ScaleBio",
        Requires(action="weights", observation="dict", signals=True, step_rule="bilevel"),
    ),
    "hbo": _hbo("agent:Hbo", "HBO: actors over sources and strata, moved by probes", "needs"),
    "hbo_released": _hbo(
        "agent:released", "HBO as its released code has it, without its defects", "released_needs"
    ),
    "hbo_paper": _hbo("agent:paper", "HBO as the paper's text has it", "paper_needs"),
    "closed_form": _hbo(
        "agent:closed_form",
        "p = R / sum R with HBO's rewards: what any actor must beat",
        "closed_form_needs",
    ),
    "ppo": _trained("PPO with the hierarchical policy"),
    "a2c": _trained("A2C with the hierarchical policy"),
    "trpo": _trained("TRPO with the hierarchical policy"),
    "recurrent_ppo": _trained("PPO with a memory on the pooled context"),
    "sac": _trained("SAC with row-wise critics"),
    "td3": _trained("TD3 with row-wise critics, exploring by action noise"),
    "ddpg": _trained("DDPG with a row-wise critic, exploring by action noise"),
    "tqc": _trained("TQC with row-wise quantile critics"),
    "crossq": _trained("CrossQ with row-wise critics, no target networks"),
    "dqn": _trained("DQN on nudges: a value per source and stratum"),
    "qrdqn": _trained("QR-DQN on nudges: quantiles per source and stratum"),
    "ars": _trained("random search on scores that are linear in the rows"),
}


def needs_training(*_: Any, **__: Any) -> Any:
    """Say that a trained algorithm cannot decide before it is trained.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "agent.name: this algorithm has to be trained first: run `mixgym train`, "
        "then give the run's folder as the agent"
    )


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    raise ConfigError(f"agent.name={name}: unknown; {did_you_mean(name, ALGORITHMS)}")
