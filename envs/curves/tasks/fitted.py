"""A fitted world: the file that `mixgym fit` writes, read back.

A readable JSON file: what runs it was fitted to, the constants of the dynamics with their spread,
sizes, costs, and the errors of held-out losses.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import CurveTask, simple
from mixgym.envs.errors import ConfigError

FORMAT = "mixgym-world/1"

LOGARITHMS = (
    "scale", "exponent", "base_scale", "base_exponent", "patience", "overfit", "warmth", "rarity",
)  # fmt: skip
"""Constants whose spread is that of their logarithm."""
VALUES = ("floor", "transfer")
"""Constants whose spread is that of themselves."""
CONSTANTS = (
    "size", "cost", "floor", "amplitude", "scale", "exponent", "base", "base_scale",
    "base_exponent", "transfer", "spread", "lasting", "forgetting", "known",
    "rarity", "kinship", "fading", "begun", "warmth", "cooling", "patience", "overfit",
    "free_passes", "batch", "batch_power", "rate_harm",
)  # fmt: skip
"""Constants of a task that a file holds."""


@dataclass(frozen=True)
class FittedWorld:
    """A fast world.

    Attributes:
        name: of it.
        sources: their names, K of them.
        constants: by name, as of a :class:`~mixgym.envs.curves.task.CurveTask`.
        spread: by name, standard deviations of some of them.
        row_error: float64[K, G], relative standard error of a held-out loss, times the root of
            its supervised tokens.
        stays: share of the variance of that error which is the same in all measurements of a run.
        budget: tokens read in a run that it was fitted to.
        about: where it comes from and how well it fits; plain data.
    """

    name: str
    sources: tuple[str, ...]
    constants: Mapping[str, FloatArray]
    spread: Mapping[str, FloatArray]
    row_error: FloatArray
    stays: float
    budget: float
    about: Mapping[str, Any]

    def task(self) -> CurveTask:
        """The world itself: its own sizes, targets 1, a constant learning rate, no errors."""
        shape = self.constants["size"].shape
        return CurveTask(
            **{
                **simple(*shape),
                **{name: np.array(values) for name, values in self.constants.items()},
                "targets": np.ones(shape[0]),
                "threshold": np.zeros((shape[0], 1)),
                "budget": np.array(self.budget),
                "noise": np.zeros(shape),
            }
        )

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "format": FORMAT,
            "name": self.name,
            "about": dict(self.about),
            "sources": list(self.sources),
            "budget": self.budget,
            "stays": self.stays,
            "row_error": _rounded(self.row_error),
            "constants": {name: _rounded(self.constants[name]) for name in CONSTANTS},
            "spread": {name: _rounded(values) for name, values in self.spread.items()},
        }

    def write(self, path: Path) -> None:
        """Write the file; all of it or nothing."""
        storage.write_json(path, self.plain())


def _rounded(values: FloatArray) -> Any:
    """Nested lists of numbers of five digits."""
    return np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])(values).tolist()


def read_world(path: str | Path) -> FittedWorld:
    """Read a world.

    Raises:
        ConfigError: if there is no such file, or something in it is missing or of another shape.
    """
    path = Path(path)
    try:
        return _world(json.loads(path.read_text()), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); mixgym fit writes worlds"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); mixgym fit writes worlds") from None


def _world(data: Any, place: str) -> FittedWorld:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ConfigError(f"{place}: not a fitted world (format {found!r}, wanted {FORMAT!r})")
    missing = [k for k in ("name", "sources", "constants", "spread", "row_error") if k not in data]
    missing += [f"constants.{k}" for k in CONSTANTS if k not in data.get("constants", {})]
    if missing:
        raise ConfigError(f"{place}: {', '.join(missing)} missing: fit the world anew")
    world = FittedWorld(
        name=str(data["name"]),
        sources=tuple(data["sources"]),
        constants={k: np.array(data["constants"][k], np.float64) for k in CONSTANTS},
        spread={k: np.array(v, np.float64) for k, v in data["spread"].items()},
        row_error=np.array(data["row_error"], np.float64),
        stays=float(data["stays"]),
        budget=float(data["budget"]),
        about=data.get("about", {}),
    )
    _check(world, place)
    return world


def _check(world: FittedWorld, place: str) -> None:
    """Refuse shapes that do not fit together, and numbers that are none.

    Raises:
        ConfigError: naming the constant.
    """
    shape = world.constants["size"].shape
    if len(shape) != 2 or shape[0] != len(world.sources):
        raise ConfigError(f"{place}: constants.size has the shape {shape}, not sources x strata")
    wanted = {k: v.shape for k, v in simple(*shape).items()} | {
        "size": shape, "floor": shape, "amplitude": shape, "scale": shape, "exponent": shape,
        "transfer": (shape[0],) * 2, "spread": (shape[1],) * 2, "patience": (shape[0], 1),
        "overfit": (shape[0], 1),
    }  # fmt: skip
    for name, values in world.constants.items():
        if values.shape != wanted[name]:
            raise ConfigError(
                f"{place}: constants.{name} has the shape {values.shape}, not {wanted[name]}"
            )
        if not np.isfinite(values).all():
            raise ConfigError(f"{place}: constants.{name} holds a number that is not finite")


@lru_cache(maxsize=1)
def library() -> tuple[FittedWorld, ...]:
    """The worlds of the package, in the order of their names."""
    folder = resources.files("mixgym.envs.curves.tasks") / "library"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return tuple(_world(json.loads(file.read_text()), file.name) for file in files)
