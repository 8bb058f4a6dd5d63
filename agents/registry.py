"""One word -> an agent: its factory, what it needs, what it is. Light: imports nothing heavy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixgym.agents.algorithm_presets import PRESETS, Preset
from mixgym.agents.mixers.needs import cost
from mixgym.agents.plugins import Adopted, adopted
from mixgym.agents.requires import RULE, TRAINED, Requires
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.plugins.outside import load_object
from mixgym.envs.plugins.registry import Registry


@dataclass(frozen=True)
class Algorithm:
    """A registered scheduler.

    Attributes:
        summary: one line for ``mixgym list algorithms``.
        factory: a callable ``(env, names=..., **options) -> agent``, or ``module:name`` of one.
        requires: the environment that it needs, whatever its options.
        needs_from: ``module:name`` of a function ``options -> Requires``, for one whose needs
            depend on its options.
        options: ``module:name`` of the model of its options, where they are not the factory's
            keyword arguments.
        variant: which of HBO's sets of options is its default.
        training: how it is trained by `mixgym train`, where it is.
    """

    summary: str
    factory: str | Callable[..., Any]
    requires: Requires
    needs_from: str | Callable[..., Any] | None = None
    options: str | None = None
    variant: str | None = None
    training: Preset | None = None

    def preset(self) -> Mapping[str, Any]:
        """The values that its options have unless others are given."""
        from mixgym.agents.hbo.variants import PRESETS as VARIANTS

        return {"preset": self.variant, **VARIANTS[self.variant]} if self.variant else {}

    @property
    def is_trained(self) -> bool:
        """Whether it decides only after a training."""
        return self.requires is TRAINED

    def load(self) -> Callable[..., Any]:
        """Import the factory."""
        factory: Callable[..., Any] = load_object(self.factory)
        return factory

    def needs(self, options: Mapping[str, Any]) -> Requires:
        """The environment that it needs with these options.

        Raises:
            ConfigError: for options that it does not take.
        """
        if self.needs_from is None:
            return self.requires
        needs: Requires = load_object(self.needs_from)(dict(options))
        return needs


def _rule(name: str, summary: str) -> Algorithm:
    return Algorithm(summary, f"mixgym.agents.rules:{name}", RULE)


_REFERENCE = Requires(action="weights", observation="dict", signals=True, reference=True)


def _mixer(
    name: str, summary: str, requires: Requires = RULE, needs: str | None = None
) -> Algorithm:
    path = None if needs is None else f"mixgym.agents.mixers.needs:{needs}"
    fixed: Requires = requires if path is None else load_object(path)({})
    spent = cost(fixed)
    whole = f"{summary} ({spent})" if spent else summary
    return Algorithm(whole, f"mixgym.agents.mixers.{name}", fixed, path)


def _hbo(variant: str, summary: str) -> Algorithm:
    """One of HBO's sets of options; each has a factory and a function of needs of its name."""
    own = variant if variant != "recommended" else ""
    factory = f"mixgym.agents.hbo.agent:{own or 'Hbo'}"
    needs_from = f"mixgym.agents.hbo.settings:{own}{'_' if own else ''}needs"
    options = "mixgym.agents.hbo.settings:HboOptions"
    training = PRESETS[HBO] if variant == "recommended" else None
    return Algorithm(summary, factory, RULE, needs_from, options, variant, training)


STOCK = "sb3"
"""An agent that was trained elsewhere, on a registered environment."""

HBO = "hbo"
"""The one algorithm that learns inside a run, and can be trained over many as well."""


def _trained(preset: Preset) -> Algorithm:
    whole = f"{preset.summary}; train it first (mixgym train --algo NAME)"
    return Algorithm(whole, "mixgym.agents.registry:_needs_training", TRAINED, training=preset)


_BUILT_IN = {
    "uniform": _rule("Uniform", "every trainable source alike"),
    "proportional": _rule("Proportional", "sources by their size"),
    "temperature": _rule("Temperature", "size ** (1 / tau): between proportional and uniform"),
    "cost_power": _rule(
        "CostPower", "size ** a * cost ** -b: sources whose supervised tokens are cheap to read"
    ),
    "fixed": _rule("Fixed", "weights that you give"),
    "scripted": _rule("Scripted", "weights along the budget, linear between the points you give"),
    "random_pieces": Algorithm(
        "random mixtures that change now and then, as `mixgym record` wants them",
        "mixgym.agents.random_pieces:RandomPieces",
        RULE,
    ),
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
    "hbo": _hbo("recommended", "HBO: actors over sources and strata, moved by probes"),
    "hbo_released": _hbo("released", "HBO as its released code has it, without its defects"),
    "hbo_paper": _hbo("paper", "HBO as the paper's text has it"),
    "closed_form": _hbo(
        "closed_form", "p = R / sum R with HBO's rewards: what any actor must beat"
    ),
    STOCK: Algorithm(
        "an agent of Stable-Baselines3 with its own policy, from the file of its `save`",
        "mixgym.agents.stock:StockAgent",
        Requires(),
        "mixgym.agents.stock:needs",
    ),
    **{name: _trained(preset) for name, preset in PRESETS.items() if name != HBO},
}


def as_algorithm(where: str, thing: Any, **declared: Any) -> Algorithm:
    """The scheduler that a plug-in is; see :mod:`mixgym.agents.plugins`.

    Raises:
        ConfigError: for what is none, beginning with ``where``.
    """
    if isinstance(thing, Algorithm):
        return replace(thing, **declared)
    found: Adopted = adopted(where, thing)
    if found.training is not None:
        return replace(_trained(found.training), **declared)
    return Algorithm(
        **{
            "summary": found.summary,
            "factory": found.factory,
            "requires": found.requires,
            **declared,
        }
    )


ALGORITHMS: Registry[Algorithm] = Registry(
    "algorithm", "agent.name", "mixgym.algorithms", as_algorithm, _BUILT_IN
)
"""Rules, mixers, bandits and trained algorithms, by their words."""


def _needs_training(*_: Any, **__: Any) -> Any:
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
        ConfigError: for an unknown name, with the nearest known one, or a plug-in that is none.
    """
    return ALGORITHMS[name]


def training_of(name: str) -> Preset:
    """How an algorithm is trained.

    Raises:
        ConfigError: if it is unknown, or none that is trained.
    """
    training = ALGORITHMS.find(name, "train.algo").training if ALGORITHMS.knows(name) else None
    if training is None:
        known = [word for word, one in ALGORITHMS.items() if one.training is not None]
        raise ConfigError(
            f"train.algo={name}: not a trained algorithm; {did_you_mean(name, known)}"
        )
    return training
