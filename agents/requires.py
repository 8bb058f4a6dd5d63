"""What an agent asks of its environment; the trainer builds the environment from it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["logits", "weights", "delta", "nudge"]


@dataclass(frozen=True)
class Requires:
    """The environment that an agent needs.

    Attributes:
        action: action kind.
        observation: ``flat`` or ``dict``.
        signals: whether it reads the raw ``signals`` (only the Dict observation has them).
        probes: probe name -> period in decisions; they run only then.
        probe_at_start: whether the probes are measured before the first decision too.
        step_rule: how optimiser steps are taken; ``plain`` leaves what is configured.
        reference: whether it needs the losses of a reference model.
        settings: other options of the environment that it was trained with, by name.
    """

    action: Action = "logits"
    observation: Literal["flat", "dict"] = "flat"
    signals: bool = False
    probes: dict[str, int] = field(default_factory=dict)
    probe_at_start: bool = False
    step_rule: Literal["plain", "bilevel"] = "plain"
    reference: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


TRAINED = Requires()
"""What a trained agent needs."""

RULE = Requires(action="weights", observation="dict", signals=True)
"""What a rule needs."""
