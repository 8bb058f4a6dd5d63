"""The recipe of a merge: validated plain data, from Python, YAML or the command line.

mergekit's YAML is read as far as the two overlap. Nothing here touches a model; parameters that
depend on the tensor are resolved in ``parameters.py``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.trainer.merging.errors import MergeError, MergeMisuseError
from mixgym.trainer.merging.methods.catalogue import (
    COMBINERS,
    METHODS,
    PARAMETERS,
    PER_MODEL,
    PER_TENSOR,
    SPARSIFIERS,
    MethodSpec,
    accepted_parameters,
)
from mixgym.trainer.strict_yaml import KeyPath, read_mapping

Word = Literal["bfloat16", "float16", "float32", "float64"]
Value = Any
"""A number, a gradient over layers [first, ..., last], a mapping {regular expression: value}, or
mergekit's list of {filter, value}."""


class Strict(BaseModel):
    """Unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelEntry(Strict):
    """One model, with the parameters that are its own.

    >>> ModelEntry.model_validate({"model": "runs/a", "weight": 0.5}).parameters
    {'weight': 0.5}
    """

    model: str = Field(description="folder of the model, or of a LoRA adapter")
    parameters: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"model": data}
        if not isinstance(data, dict):
            return data
        loose = {key: value for key, value in data.items() if key in PER_MODEL}
        rest = {key: value for key, value in data.items() if key not in PER_MODEL}
        if loose:
            rest["parameters"] = {**(rest.get("parameters") or {}), **loose}
        return rest


class Recipe(Strict):
    """What to merge, how, and where to.

    >>> recipe = Recipe(method="linear", models=["runs/a", "runs/b"], out="merged")
    >>> [entry.model for entry in recipe.models]
    ['runs/a', 'runs/b']
    """

    method: str = Field(description="a name of `mixgym list merge-methods`")
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    base: str | None = Field(None, description="the model that all were trained from")
    out: str = Field("", description="folder to write; may be left to the command line")
    sparsify: str | None = Field(None, description="first stage, instead of the method's own")
    combine: str | None = Field(None, description="second stage, instead of the method's own")
    parameters: dict[str, Value] = Field(default_factory=dict)
    seed: int = Field(0, description="of all random draws")
    out_dtype: Word | None = Field(None, description="of the output; the models' own by default")
    tokenizer_from: str | None = Field(None, description="model whose tokenizer is copied, or none")
    vocab: Literal["error", "base"] = Field(
        "error", description="base: cut or fill every vocabulary to the base's rows"
    )
    overwrite: bool = Field(False, description="replace the weights in a folder that is not empty")
    max_shard_size: int | str = Field("5GB", description="bytes per file, such as 500MB")
    allow_nonfinite: bool = Field(False, description="accept NaN and infinities")
    chunk_elements: int = Field(1 << 17, ge=1, description="elements in memory per tensor at once")
    threads: int = Field(1, ge=1, description="tensors that are merged at the same time")
    statistics: bool = Field(
        False, description="count zero deltas and measure lengths even where no method needs them"
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise _KeyedError(
                        (key,), f"unknown key {key!r}; {did_you_mean(str(key), cls.model_fields)}"
                    )
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        spec = self.spec
        for kind, name, known in (
            ("sparsify", self.sparsify, SPARSIFIERS),
            ("combine", self.combine, COMBINERS),
        ):
            if name is not None and name not in known:
                raise _KeyedError((kind,), f"unknown {kind} {name!r}; {did_you_mean(name, known)}")
            if name is not None and not spec.is_staged:
                raise _KeyedError((kind,), f"{self.method} has no stages; remove {kind}: {name}")
        self._check_parameters()
        return self

    def _check_parameters(self) -> None:
        allowed = accepted_parameters(self.spec, *self.stages)
        own = [(f"models.{i}", entry.parameters) for i, entry in enumerate(self.models)]
        for where, given in [("parameters", self.parameters), *own]:
            for key, value in given.items():
                try:
                    self._check_parameter(where, key, value, allowed)
                except ValueError as error:
                    path = tuple(int(p) if p.isdigit() else p for p in where.split("."))
                    raise _KeyedError(_parameter_path(path, key), str(error)) from None

    def _check_parameter(self, where: str, key: str, value: Value, allowed: set[str]) -> None:
        if key not in PARAMETERS:
            raise ValueError(f"{where}: unknown parameter {key!r}; {did_you_mean(key, allowed)}")
        if key not in allowed:
            raise ValueError(
                f"{where}: {self.method} has no parameter {key!r}; it takes "
                f"{', '.join(sorted(allowed)) or 'none'}"
            )
        if where != "parameters" and key not in PER_MODEL:
            raise ValueError(f"{where}: {key} is the same for all models; put it under parameters")
        if key in PER_TENSOR:
            _check_value(f"{where}.{key}", value)
        elif isinstance(value, dict | list):
            raise ValueError(f"{where}.{key} is one value for all tensors, not {value!r}")

    @property
    def spec(self) -> MethodSpec:
        """The method's entry in the catalogue."""
        try:
            return METHODS[self.method]
        except ConfigError as error:
            raise _KeyedError(("method",), str(error)) from None

    @property
    def stages(self) -> tuple[str, str]:
        """The names of the two stages."""
        return self.sparsify or self.spec.sparsify, self.combine or self.spec.combine

    @classmethod
    def parse(
        cls,
        data: Mapping[str, Any],
        origin: str = "recipe",
        lines: Mapping[KeyPath, int] | None = None,
    ) -> "Recipe":
        """Validate plain data, mergekit's included.

        Args:
            data: The recipe.
            origin: What errors call it: the file, if it was read from one.
            lines: Of the file's keys, by their paths.

        Raises:
            MergeError: One line that names the file and line, the key, the value and the fix.
        """
        from mixgym.trainer.merging.mergekit import from_mergekit, is_mergekit

        plain = from_mergekit(data) if is_mergekit(data) else dict(data)
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            cause = (first.get("ctx") or {}).get("error")
            path = cause.path if isinstance(cause, _KeyedError) else first["loc"]
            where = ".".join(str(part) for part in first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            place = f"{origin}{_line_of(path, lines or {})}"
            raise MergeMisuseError(f"{place}: {where + ': ' if where else ''}{text}") from error

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Read a YAML file; ``overrides`` replace top-level keys, and parameters one by one.

        Scalars are those of a run's configuration: ``5e-1`` is a number, and ``no`` a text.

        Raises:
            MergeError: Naming the file, the line and the key.
        """
        data, lines = _read(path)
        given = overrides or {}
        kept = {key: line for key, line in lines.items() if not key or key[0] not in given}
        try:
            return cls.parse(_overlay(data, given), str(path), kept)
        except MergeMisuseError:
            raise
        except MergeError as error:
            raise MergeMisuseError(f"{path}: {error}") from error


def _read(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        data, lines = read_mapping(Path(path).expanduser())
    except ConfigError as error:
        raise MergeMisuseError(f"recipe {error}") from error
    if not data:
        raise MergeMisuseError(f"recipe {path} holds no keys; see `mixgym merge --help`")
    return data, lines


def _parameter_path(where: KeyPath, key: str) -> KeyPath:
    """The path of a parameter, which a model may hold without ``parameters`` around it."""
    return (*where, key) if where[0] == "parameters" else (*where, "parameters", key)


class _KeyedError(ValueError):
    """A value that will not do, with the path of its key."""

    def __init__(self, path: KeyPath, text: str) -> None:
        super().__init__(text)
        self.path = path


def _line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> str:
    """``:LINE`` of a key, or of what it stands in; nothing where that is unknown."""
    found = (lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines)
    line = next(found, None)
    return "" if line is None else f":{line}"


def _overlay(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with keys replaced; mappings under ``parameters`` are merged."""
    from mixgym.trainer.merging.mergekit import from_mergekit, is_mergekit

    plain = from_mergekit(data) if is_mergekit(data) else dict(data)
    parameters = {**(plain.get("parameters") or {}), **(overrides.get("parameters") or {})}
    merged = {**plain, **overrides}
    return {**merged, "parameters": parameters} if parameters else merged


def _check_value(where: str, value: Value) -> None:
    """Refuse what is neither a number, a gradient, a mapping by pattern nor a list of filters."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{where} must be a number, not {value!r}")
    if isinstance(value, int | float):
        return
    if isinstance(value, dict):
        for pattern, inner in value.items():
            _check_pattern(where, str(pattern))
            _check_value(f"{where}[{pattern}]", inner)
    elif isinstance(value, list) and value:
        _check_list(where, value)
    else:
        raise ValueError(
            f"{where} must be a number, a list over layers or {{pattern: value}}, not {value!r}"
        )


def _check_list(where: str, value: list[Any]) -> None:
    for item in value:
        if isinstance(item, dict):
            if not {"value"} <= item.keys() <= {"filter", "value"}:
                raise ValueError(f"{where}: a filter has the keys filter and value, not {item!r}")
            _check_value(where, item["value"])
        elif isinstance(item, bool) or not isinstance(item, int | float):
            raise ValueError(f"{where}: {item!r} in a list over layers is not a number")


def _check_pattern(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
