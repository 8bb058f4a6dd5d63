"""The options of HBO: everything that the paper and its released code differ in is one."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixgym.agents.hbo.schedule import LEVELS
from mixgym.agents.hbo.variants import PRESETS
from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.options import Fraction, Options
from mixgym.envs.probes import PROBES, find_probe

PROGRESS = "progress"  # reward of either level that needs no probe

UpdateName = Literal[
    "enumerated", "sampled", "sampled_importance_weighted", "expected", "closed_form"
]


class LevelOptions(Options):
    """One level: its actor, what moves it, and how."""

    actor: Literal["table", "mlp", "equivariant"] = Field(
        "table", description="logit table, two-layer perceptron, or the hierarchical network"
    )
    features: Literal["identity", "observed"] = Field(
        "observed", description="mlp: which unit it is, or the unit's row of the observation"
    )
    hidden: int = Field(16, ge=1, description="mlp, equivariant: width")
    reward: str = Field("gradient_norm", description="a probe of this level, or progress")
    period: int = Field(1, ge=1, description="decisions between two updates")
    update: UpdateName = "enumerated"
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(0.1, gt=0)
    inner_steps: int = Field(1, ge=1, description="optimiser steps per update, rewards held")
    keep_state: bool = Field(True, description="Adam's state lives on from update to update")
    warm_start: Literal["log_prior", "mse_fit"] = Field(
        "log_prior", description="logits of the prior, or regression onto it with Adam"
    )
    tau: float = Field(1.0, gt=0, description="temperature prior: 1 proportional, .inf uniform")
    normalize: Literal["none", "mean", "sum", "zscore"] = "none"
    ema: float = Field(1.0, gt=0, le=1, description="weight of the new reward; 1: no average")
    power: float = Field(1.0, gt=0, description="that rewards are raised to")
    significance: float = Field(
        0.0, ge=0, description="standard errors that rewards must differ by, or no update"
    )
    trust_region: float | None = Field(
        None, gt=0, description="nats that an update may move the distribution by"
    )
    floor: Fraction = Field(0.0, description="share of the prior in the weights")
    times_prior: bool = Field(
        False, description="rewards times the prior: where they are equal, the prior it is"
    )
    patience: float | None = Field(
        None, gt=0, description="passes over which a reward fades, for rows seen before"
    )


class GlobalOptions(LevelOptions):
    """The level of the sources."""

    by_target: bool = Field(False, description="rewards times targets")


class LocalOptions(LevelOptions):
    """The level of the strata inside each source."""

    reward: str = Field("perplexity_ratio", description="a probe of this level, or progress")
    shared: bool = Field(False, description="one actor for all sources, not one per source")


class HboOptions(Options):
    """Both levels."""

    model_config = ConfigDict(populate_by_name=True, ser_json_inf_nan="strings")

    preset: str = "recommended"
    levels: Literal["both", "global", "local", "none"] = "both"
    update_at_start: bool = Field(False, description="also before the first interval")
    seed: int = Field(0, ge=0, description="of drawn units and of perceptrons")
    global_: GlobalOptions = Field(GlobalOptions(), alias="global")
    local: LocalOptions = LocalOptions()

    @property
    def learned(self) -> tuple[bool, bool]:
        """Whether the global and the local level are learned."""
        return LEVELS[self.levels]

    def probes(self) -> dict[str, int]:
        """Probe -> period in decisions, of the levels that are learned."""
        pairs = zip(self.learned, (self.global_, self.local), strict=True)
        return {
            level.reward: level.period
            for learned, level in pairs
            if learned and level.reward != PROGRESS
        }


def read_options(given: Mapping[str, Any]) -> HboOptions:
    """A preset with the options that were given on top.

    Raises:
        ConfigError: one line per mistake, naming key, value and what would do.
    """
    preset = given.get("preset", "recommended")
    if preset not in PRESETS:
        raise ConfigError(
            f"agent.options.preset={preset}: choose one of {', '.join(map(str, PRESETS))}"
        )
    try:
        options = HboOptions.model_validate(_merged(PRESETS[preset], given))
    except ValidationError as error:
        raise ConfigError("\n".join(words(mistake) for mistake in error.errors())) from None
    check_reward(options.global_.reward, "source", "agent.options.global.reward")
    check_reward(options.local.reward, "stratum", "agent.options.local.reward")
    if options.local.actor == "equivariant" and not options.local.shared:
        raise ConfigError(
            "agent.options.local: the actor equivariant is one network for all sources; "
            "set local.shared=true, or take table or mlp"
        )
    return options


def needs(options: Mapping[str, Any]) -> Requires:
    """The environment that HBO needs with these options; raises as :func:`read_options`."""
    read = read_options(options)
    probes = read.probes()
    return Requires(
        action="weights",
        observation="dict",
        signals=True,
        probes=probes,
        probe_at_start=read.update_at_start and bool(probes),
        reference=any(find_probe(name).needs_reference for name in probes),
    )


def released_needs(options: Mapping[str, Any]) -> Requires:
    """:func:`needs` on top of the preset ``released``."""
    return needs({"preset": "released", **options})


def paper_needs(options: Mapping[str, Any]) -> Requires:
    """:func:`needs` on top of the preset ``paper``."""
    return needs({"preset": "paper", **options})


def closed_form_needs(options: Mapping[str, Any]) -> Requires:
    """:func:`needs` on top of the preset ``closed_form``."""
    return needs({"preset": "closed_form", **options})


def check_reward(name: str, level: str, where: str) -> None:
    """Raise a ConfigError unless the reward is a probe of the level (``source``, ``stratum``)."""
    if name == PROGRESS:
        return
    allowed = [probe for probe, kind in PROBES.items() if kind.level == level] + [PROGRESS]
    if not PROBES.knows(name) or find_probe(name).level != level:
        raise ConfigError(f"{where}={name}: choose one of {', '.join(allowed)}")


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options over options, section by section."""
    merged = dict(base)
    for key, value in given.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def words(
    mistake: Any,
    where: tuple[str, ...] = ("agent", "options"),
    model: type[BaseModel] = HboOptions,
) -> str:
    """A mistake that pydantic found, as one line with the key below ``where``.

    Args:
        mistake: one of a ValidationError's.
        where: what stands in front of its key.
        model: that was validated: where a key is unknown, those that there are are named.
    """
    key = ".".join((*where, *(str(part) for part in mistake["loc"])))
    if mistake["type"] == "extra_forbidden":
        *sections, last = map(str, mistake["loc"])
        return f"{key}: HBO has no such option; {did_you_mean(last, _known(model, sections))}"
    return f"{key}={mistake['input']!r}: {mistake['msg']}"


def _known(model: type[BaseModel], sections: list[str]) -> list[str]:
    """The keys of a section of a model, by the names that are written."""
    for section in sections:
        found = {info.alias or name: info for name, info in model.model_fields.items()}
        inner = found[section].annotation
        assert isinstance(inner, type)
        model = inner
    return [info.alias or name for name, info in model.model_fields.items()]
