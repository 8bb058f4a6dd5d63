"""The configuration of a run: YAML and overrides in, validated options out, and back to YAML.

What a world needs is defined by :class:`mixgym.envs.options.WorldOptions`; this module adds the
agent and the run, reads files strictly (no key twice, no unknown key, no YAML 1.1 surprises such
as ``no`` for false) and words every mistake as one line that names file, key, value and fix.
"""

import re
import typing
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mixgym.envs.errors import ConfigError, nearest
from mixgym.envs.options import Options, WorldOptions
from mixgym.trainer.strict_yaml import KeyPath, StrictDumper, parse_yaml, read_mapping, shown
from mixgym.trainer.training.training_options import TrainOptions

_COMMAND_LINE = "command line"
_VERSIONS = "versions"
_UNION_BRANCHES = ("str", "list[str]")
_RECORDED = ("mixgym", "torch", "transformers", "gymnasium", "stable-baselines3", "numpy")


class AgentOptions(Options):
    """Who decides."""

    name: str = Field(default="uniform", description="an algorithm's name (mixgym list algorithms)")
    options: dict[str, Any] = Field(default={}, description="the algorithm's own options")

    @field_validator("options")
    @classmethod
    def _keys_are_text(cls, options: dict[str, Any]) -> dict[str, Any]:
        """As YAML has them: a run that was started from Python is resumed from its YAML."""
        return {name: _with_text_keys(value) for name, value in options.items()}


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return value


class RunOptions(Options):
    """Where the run is recorded, and how often."""

    dir: str = Field(default="runs/finetune", min_length=1, description="the run folder")
    save_every: int = Field(default=10, ge=1, description="decisions between two checkpoints")
    keep_last: int = Field(
        default=2, ge=0, description="checkpoints that are kept; 0: none, a resumed run starts anew"
    )
    keep_model: bool = Field(
        default=True, description="leave the fine-tuned model and the picture; false: records only"
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard records")
    exact_match: int = Field(
        default=0, ge=0, description="test rows per checkable source to decode greedily at the end"
    )


class OrdersOptions(Options):
    """Runs that differ in data order only (`mixgym orders`)."""

    runs: int = Field(default=4, ge=2, description="models to train")
    kind: Literal["samples", "positions"] = Field(
        default="samples", description="shuffle all rows, or fixed batches of rows"
    )
    rows: int | None = Field(
        default=None, ge=2, description="training rows, drawn evenly from the sources; null: all"
    )
    epochs: int = Field(default=2, ge=1, description="passes over the rows: the budget of a run")
    batch: int = Field(default=8, ge=1, description="rows in an optimiser step")
    checkpoints: int = Field(default=4, ge=0, description="intermediate checkpoints of each run")
    bins: int = Field(default=20, ge=2, description="positions that losses are averaged over")
    controls: tuple[Literal["constant-rate", "other-kind"], ...] = Field(
        default=(),
        description="further sets of runs: constant-rate (no warm-up either), other-kind",
    )


class WeightsOptions(Options):
    """Learning source weights before fine-tuning by them (`mixgym weights`)."""

    rows: int = Field(
        default=3000, ge=1, description="training rows of each source that weights are learnt on"
    )
    steps: int | None = Field(
        default=None, ge=1, description="optimiser steps of learning (null: training.steps)"
    )


class RunConfig(WorldOptions):
    """Everything that one run is made of."""

    agent: AgentOptions = AgentOptions()
    train: TrainOptions = TrainOptions()
    orders: OrdersOptions = OrdersOptions()
    weights: WeightsOptions = WeightsOptions()
    run: RunOptions = RunOptions()

    @model_validator(mode="after")
    def _names_are_usable(self) -> "RunConfig":
        for name in self.sources if isinstance(self.sources, dict) else ():
            if not re.fullmatch(r"[^\s./=]+", name):
                usable = re.sub(r"[\s./=]+", "-", name)
                raise ValueError(
                    f"source name {name!r}: dots, slashes, blanks and = are kept for keys, tags "
                    f"and overrides; rename it, say to {usable!r}"
                )
        return self


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path: a YAML file, or None for the defaults.
        overrides: ``key.sub=value`` each, in order; the value is read as YAML.

    Returns:
        The complete configuration. A ``versions`` block, as written by :func:`dump_config`, is
        accepted and left out.

    Raises:
        ConfigError: one line per mistake, each naming file (and line), key, value and fix.
    """
    origin = _COMMAND_LINE if path is None else str(path)
    data, lines = ({}, {}) if path is None else read_mapping(Path(path))
    data.pop(_VERSIONS, None)
    for override in overrides:
        for key in _apply(data, override):
            lines[key] = 0
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        mistakes = _mistakes(error, data)
        raise ConfigError(
            "\n".join(f"{_place(origin, lines, at)}: {text}" for at, text in mistakes)
        ) from None


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML, with every default and a ``versions`` block.

    :func:`load_config` reads it back to an equal configuration.
    """
    data = config.model_dump()
    data[_VERSIONS] = installed_versions()
    return yaml.dump(data, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of what a run's numbers depend on; ``absent`` if not installed."""
    versions = {"python": python_version()}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


# --- overrides ------------------------------------------------------------------------------------


def _apply(data: dict[str, Any], override: str) -> list[KeyPath]:
    """Set one ``key.sub=value`` in place.

    Returns:
        The paths that now come from the command line: the key, and every section that it made.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{_COMMAND_LINE}: {override!r} is not an override; write key.sub=value")
    value, _ = parse_yaml(text, f"{_COMMAND_LINE}: {key}")
    touched: list[KeyPath] = []
    section = data
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in section:
            touched.append(tuple(parts[:depth]))
            section[part] = {}
        if not isinstance(section[part], dict):
            raise ConfigError(
                f"{_COMMAND_LINE}: {override!r}: {'.'.join(parts[:depth])} is "
                f"{shown(section[part])}, which has no keys; set all of it, "
                f"{'.'.join(parts[:depth])}={{{parts[depth]}: ...}}"
            )
        section = section[part]
    section[parts[-1]] = value
    return [*touched, tuple(parts)]


def _place(origin: str, lines: Mapping[KeyPath, int], at: KeyPath) -> str:
    """``file:line``, or ``command line`` for what an override gave."""
    for depth in range(len(at), -1, -1):
        line = lines.get(at[:depth])
        if line is not None:
            return f"{origin}:{line}" if line else _COMMAND_LINE
    return origin


# --- mistakes -------------------------------------------------------------------------------------


def _mistakes(error: ValidationError, data: Any) -> list[tuple[KeyPath, str]]:
    """Path and wording of every mistake, once each, in the order in which they were found."""
    found: dict[KeyPath, str] = {}
    for detail in error.errors():
        at = _clean_path(detail, data)
        if at is not None and at not in found:
            found[at] = _worded(detail, at)
    return list(found.items())


def _clean_path(detail: ErrorDetails, data: Any) -> KeyPath | None:
    """The path in the data, without pydantic's names of union branches.

    Returns:
        None for the branches of a union that the value was not meant for: a mapping is never
        meant as a word, and anything else never as a mapping.
    """
    path: list[str | int] = []
    value = data
    for part in detail["loc"]:
        if isinstance(part, str) and re.match(r"(literal|dict)\[", part):
            if part.startswith("dict") != isinstance(value, dict):
                return None
            continue
        if part in _UNION_BRANCHES and not isinstance(value, dict):
            continue
        path.append(part)
        value = value.get(part) if isinstance(value, dict) else None
    return tuple(path)


def _worded(detail: ErrorDetails, at: KeyPath) -> str:
    """One line: dotted key, value seen, what is wanted."""
    key = ".".join(map(str, at))
    value = shown(detail["input"])
    if detail["type"] == "extra_forbidden":
        known = sorted(_section_at(at[:-1]))
        near = nearest(str(at[-1]), known, cutoff=0.5)
        advice = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}"
        return f"{key}: unknown key (value {value}); {advice}"
    wanted = detail["msg"].removeprefix("Value error, ").removeprefix(f"{key}=")
    wanted = wanted.removeprefix(f"{detail['input']}: ")
    wanted = re.sub(r"^Input should be (a valid )?", "must be ", wanted)
    wanted = re.sub(r"dictionary or instance of \w+|dictionary", "mapping", wanted)
    if not key:
        return wanted
    if detail["type"] == "missing":
        return f"{key}: missing; give it a value"
    field = _section_at(at[:-1]).get(str(at[-1]))
    about = f" ({field})" if field else ""
    return f"{key}: {value} will not do: {wanted}{about}"


def _section_at(at: KeyPath) -> dict[str, str]:
    """Known keys of a section and their descriptions; empty where any key may stand."""
    kind: Any = RunConfig
    for part in at:
        kind = _step(kind, part)
    model = _model_in(kind)
    if model is None:
        return {}
    return {name: field.description or "" for name, field in model.model_fields.items()}


def _step(kind: Any, part: str | int) -> Any:
    """The type of what stands under ``part`` in a value of type ``kind``."""
    model = _model_in(kind)
    if model is not None:
        field = model.model_fields.get(str(part))
        return field.annotation if field else None
    for branch in (kind, *typing.get_args(kind)):
        if typing.get_origin(branch) is dict:
            return typing.get_args(branch)[1]
    return None


def _model_in(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
