"""Defaults of each trained algorithm, read from ``presets.yaml`` beside this file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

FILE = Path(__file__).with_name("presets.yaml")

Family = Literal["on_policy", "off_policy", "search"]


@dataclass(frozen=True)
class Preset:
    """How one algorithm is made.

    Attributes:
        summary: one line for ``mixgym list algorithms``.
        algorithm: a Stable-Baselines3 algorithm, or ``module:class`` of one.
        policy: its hierarchical policy, or ``module:class`` of it.
        family: what a rollout is.
        environment: ``action`` kind, and defaults of other options of the environment.
        options: keyword arguments of the algorithm.
        language: those that differ on a language model.
        policy_options: keyword arguments of the policy.
        provenance: how the values were found.
        search: where `mixgym tune` looks: ``options.NAME``, ``policy.NAME`` or
            ``environment.NAME`` -> a list, or ``low`` and ``high`` (``log``: in the logarithm;
            ``fall``: the value falls to that share of it).
    """

    summary: str
    algorithm: str | type[Any]
    policy: str | type[Any]
    family: Family
    environment: dict[str, Any]
    provenance: str
    options: dict[str, Any] = field(default_factory=dict)
    language: dict[str, Any] = field(default_factory=dict)
    policy_options: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)


def _read_presets(path: Path = FILE) -> dict[str, Preset]:
    """The presets of a file, by the algorithms' names."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it is there
    data: dict[str, dict[str, Any]] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return {name: Preset(**values) for name, values in data.items()}


PRESETS = _read_presets()
