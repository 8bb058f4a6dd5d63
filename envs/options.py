"""The options of one environment, as validated plain data.

``trainer.config`` adds what belongs to a run and reads YAML; ``envs.build`` turns these options
into an environment. Nothing here touches a file or a model.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from mixgym.envs.bilevel.bilevel_options import BilevelOptions
from mixgym.envs.learners.kinds import CAUSAL_LM, LearnerName
from mixgym.envs.learners.models.small_models import PRESETS
from mixgym.envs.packing.packing_options import PackingOptions
from mixgym.envs.plugins.registry import import_plugins, modules_behind
from mixgym.envs.probes import PROBES
from mixgym.envs.rewards import REWARDS
from mixgym.envs.sources.scorers import check_word
from mixgym.envs.sources.source_options import SourceOptions as SourceOptions
from mixgym.envs.sources.source_options import Weight as Weight
from mixgym.envs.spaces.priors import Prior
from mixgym.envs.strict_options import Options as Options  # the base of sections elsewhere too

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Unit = Literal["supervised_tokens", "tokens", "rows"]
BudgetUnit = Literal["steps", "supervised_tokens", "tokens"]

TaskSetName = Literal[
    "train", "validation", "test", "world-train", "world-validation", "world-test"
]

SPLITS = ("train", "reward", "select", "test")


class DataOptions(Options):
    """How rows become token sequences, strata and splits."""

    unit: Unit = Field("supervised_tokens", description="what the ratios of a mixture count")
    strata: int = Field(4, ge=1, le=64, description="difficulty strata per source")
    strata_by: str = Field(
        "length",
        description="length, column:NAME, or graded by a model: loss, ifd (ratio of perplexities "
        "with and without the prompt), ifd_loss (ratio of losses); see: mixgym list scorers",
    )
    remainder: Literal["spread", "drop"] = Field(
        "spread",
        description="training rows left over by equal strata: one more in the easiest strata "
        "each, or the hardest ones dropped",
    )
    scorer: str | None = Field(
        None, description="model that grades rows: a folder, a hub name; null: the one fine-tuned"
    )
    score_rows: int | None = Field(
        2000, ge=8, description="rows of a split that are graded, at most; others follow by length"
    )
    score_cache: str | None = Field(
        None, description="folder of cached grades; null: the user's cache folder"
    )
    max_length: int = Field(
        512, ge=8, description="tokens in a row, at most, and in the longest pack"
    )
    labels: Literal["completions", "all"] = Field(
        "completions", description="which tokens are trained on"
    )
    template: Literal["auto", "plain"] = Field(
        "auto",
        description="auto: the tokenizer's chat template, or the plain one, which is then saved "
        "with the model, if there is none; plain: that in any case",
    )
    over_long: Literal["truncate", "skip", "error"] = "truncate"
    malformed: Literal["error", "skip"] = "error"
    duplicates: Literal["report", "drop", "error"] = Field(
        "report",
        description="training rows that also stand in a held-out split, or held-out rows in two, "
        "in one source or in different ones",
    )
    held_out_fraction: Fraction = Field(
        0.05, description="of a single file, for each held-out split, at most"
    )
    held_out_tokens: int = Field(
        2000, ge=1, description="supervised tokens per source in a held-out split"
    )
    held_out_rows: int = Field(
        64, ge=1, description="rows in a held-out split even beyond that, as far as there are"
    )
    judged_tokens: int | None = Field(
        None,
        ge=1,
        description="supervised tokens per source in select and test, which are measured once or "
        "twice; null: as held_out_tokens",
    )
    cache: str | None = Field(
        "auto",
        description="folder where rows of large files (256 KiB and more) are kept as tokens, found "
        "again by the content of files, tokenizer and options; auto: the user's cache folder "
        "($MIXGYM_CACHE, or mixgym in $XDG_CACHE_HOME); null: nothing is kept",
    )
    processes: int | None = Field(
        None, ge=1, description="that encode rows, where they are many; null: one per core"
    )
    packing: PackingOptions = PackingOptions()

    @field_validator("strata_by")
    @classmethod
    def _known_scorer(cls, word: str) -> str:
        check_word(word)
        return word


class ModelOptions(Options):
    """The model that is fine-tuned."""

    name: str = Field("0.1m", description="a preset (0.1m, 1m, 5m), a local folder or a hub name")
    attention: str = Field("auto", description="auto, documents, sdpa, eager, flash_attention_2")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 pays only on hardware with bf16 instructions"
    )
    fp32_matmul: Literal["default", "onednn"] = Field(
        "default",
        description="float32 matrix products on CPU: onednn can pay for large models where MKL is "
        "slow (AMD), and costs time for small ones; refused where it would round",
    )
    gradient_checkpointing: bool = False
    init_seed: int = Field(0, description="of a preset's random weights")
    threads: int = Field(1, ge=1, description="torch threads on CPU")


class TrainingOptions(Options):
    """The optimisation, and how it is cut into decisions."""

    steps: int = Field(300, ge=1, description="optimiser steps in the episode (the budget)")
    tokens: int | None = Field(
        None, ge=1, description="budget in tokens read instead, prompts included (compute)"
    )
    supervised_tokens: int | None = Field(
        None, ge=1, description="budget in supervised tokens instead"
    )
    interval: int = Field(10, ge=1, description="optimiser steps between two decisions")
    packs: int = Field(8, ge=1, description="tokens of a step, in packs of max_length")
    accumulation: int = Field(1, ge=1, description="micro-steps that a step is split into")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="null, or left out: by the model, 1e-3 for the presets (random weights), 2e-5 "
        "for every other one",
    )
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Fraction = Field(0.05, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm")

    @model_validator(mode="after")
    def _one_budget(self) -> "TrainingOptions":
        if self.tokens is not None and self.supervised_tokens is not None:
            raise ValueError("these are two budgets: give tokens or supervised_tokens, not both")
        return self

    @property
    def budget_unit(self) -> BudgetUnit:
        """What the budget counts."""
        if self.tokens is not None:
            return "tokens"
        return "steps" if self.supervised_tokens is None else "supervised_tokens"

    @property
    def budget(self) -> int:
        """How many of its unit an episode has."""
        return self.tokens or self.supervised_tokens or self.steps


class PenaltyOptions(Options):
    """What is taken off every reward."""

    kl_prior: Weight = Field(
        0.0, description="times the KL divergence from the prior, over all strata"
    )
    epochs: Weight = Field(0.0, description="times the passes beyond epoch_cap, over all sources")
    epoch_cap: Weight = Field(4.0, description="passes over a source that cost nothing")
    probe_cost: Weight = Field(
        0.0, description="times the compute of the probes over that of the interval's training"
    )


class EnvironmentOptions(Options):
    """What the agent sees, does and is paid for."""

    learner: LearnerName = CAUSAL_LM
    tasks: TaskSetName | None = Field(
        None,
        description="curves: draw a task of this set at every reset, not the one of `seed`; "
        "world-...: around fitted worlds",
    )
    action: Literal["logits", "delta", "nudge", "weights"] = Field(
        "logits", description="what an action stands for: see mixgym.envs.spaces.actions"
    )
    observation: Literal["flat", "dict"] = "flat"
    step_rule: Literal["plain", "bilevel"] = Field(
        "plain", description="bilevel: source weights are learnt on the way (see `bilevel`)"
    )
    reward: str = Field("progress", description="see: mixgym list rewards")
    reward_sources: str = Field(
        "gradient_norm", description="probe of sources that log_utility, linear and arm read"
    )
    reward_strata: str = Field("perplexity_ratio", description="likewise, of strata")
    penalties: PenaltyOptions = PenaltyOptions()
    probes: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="probe -> period in decisions (see `mixgym list probes`)"
    )
    probe_rows: int = Field(8, ge=1, description="training rows that probes read per stratum")
    probe_at_start: bool = Field(False, description="probe before the first decision too")
    reference: str | None = Field(
        None,
        description="folder of a reference model; curves: any word, the reference is what the "
        "whole budget reaches under the proportional mixture",
    )
    prior: Prior | dict[str, Weight] = Field(
        "uniform",
        description="mixture of a zero action: uniform, proportional, cost_power (the agent "
        "corrects that rule), or a weight for every source",
    )
    floor: Fraction = Field(
        0.02, description="share of the prior mixed into every mixture of logits"
    )
    reach: float = Field(
        0.9, gt=0, lt=1, description="largest weight that logits can give one of K"
    )
    step: float = Field(
        0.5, gt=0, description="largest change of a log-weight in a decision (delta, nudge)"
    )
    max_sources: int | None = Field(None, ge=1, description="K_max of the padded spaces")
    max_strata: int | None = Field(None, ge=1, description="G_max of the padded spaces")

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, name: str) -> str:
        REWARDS.find(name)
        return name

    @field_validator("probes")
    @classmethod
    def _known_probes(cls, probes: dict[str, int]) -> dict[str, int]:
        for name in probes:
            PROBES.find(name)
        return probes

    @field_validator("reward_sources", "reward_strata")
    @classmethod
    def _probe_of_the_level(cls, name: str, info: ValidationInfo) -> str:
        level = "source" if info.field_name == "reward_sources" else "stratum"
        if PROBES.find(name).level != level:
            raise ValueError(f"{name} is a probe of the other level; give one of a {level}")
        return name


_PRETRAINED_RATE = 2e-5
"""``training.learning_rate`` of models that have learnt already, unless it is given."""

_DEFAULT_LENGTHS = {"0.1m": 256, "smollm2": 256}
"""``data.max_length`` of models that want less than the default of 512, unless it is given."""


class WorldOptions(Options):
    """Everything that ``envs.build`` needs for one environment."""

    seed: int = Field(0, ge=0)
    plugins: tuple[str, ...] = Field(
        (),
        description="modules to import first, which register plug-ins by a decorator; those whose "
        "words are used are added",
    )
    sources: dict[str, SourceOptions] | Literal["embedded"] = "embedded"
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    training: TrainingOptions = TrainingOptions()
    environment: EnvironmentOptions = EnvironmentOptions()
    bilevel: BilevelOptions = BilevelOptions()

    @model_validator(mode="before")
    @classmethod
    def _with_plugins(cls, values: Any) -> Any:
        """Import what registers plug-ins, and note it, so that a resumed run imports it too."""
        if not isinstance(values, dict) or not isinstance(values.get("plugins", []), list | tuple):
            return values
        given = [str(name) for name in values.get("plugins", ())]
        import_plugins(given)
        behind = [name for name in modules_behind(_words_in(values)) if name not in given]
        return {**values, "plugins": (*given, *behind)} if behind else values

    @model_validator(mode="before")
    @classmethod
    def _by_the_model(cls, values: Any) -> Any:
        """Give what is left out that depends on the model: length of rows and learning rate."""
        if not isinstance(values, dict):
            return values
        model = values.get("model", {})
        name = model.get("name", "0.1m") if isinstance(model, dict) else model.name
        sections = {
            "data": _filled(values.get("data", {}), "max_length", _DEFAULT_LENGTHS.get(name)),
            "training": _filled(
                _without_null(values.get("training", {}), "learning_rate"),
                "learning_rate",
                None if name in PRESETS else _PRETRAINED_RATE,
            ),
        }
        return {**values, **sections}


def _words_in(value: Any) -> Iterator[str]:
    """Every text in a configuration, its keys included."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _words_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words_in(inner)


def _filled(section: Any, key: str, value: Any) -> Any:
    """A section with a value for a key that it leaves out; None: it keeps its default."""
    if value is None:
        return section
    if isinstance(section, Options):
        given = key in section.model_fields_set
        return section if given else section.model_copy(update={key: value})
    return {key: value, **section} if isinstance(section, dict) else section


def _without_null(section: Any, key: str) -> Any:
    """A section without a key that it gives as null."""
    if isinstance(section, dict) and key in section and section[key] is None:
        return {name: value for name, value in section.items() if name != key}
    return section
