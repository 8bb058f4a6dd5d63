"""What mixers ask of their environment, and what that costs. Light: imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixgym.agents.mixers.checks import choice, whole
from mixgym.agents.requires import Requires
from mixgym.envs.probes import PROBES

DOGE_PROBES = {"target": "gradient_alignment", "universal": "gradient_influence"}
MOS_PROBES = {"similarity": "cosine_similarity", "difficulty": "perplexity_ratio"}
MULTIDDS_PROBE = "gradient_cosine"
LESS_PROBE = "projected_alignment"
DOREMI_CLIPS = ("source", "tokens")
DOREMI_PROBE = "excess_loss"
PERIOD = 4
"""Decisions between two measurements, unless the option ``period`` says otherwise."""


def doge(options: Mapping[str, Any]) -> Requires:
    """DoGE: the alignment with the targets, or with the other sources."""
    mode = choice("mode", options.get("mode", "target"), tuple(DOGE_PROBES))
    return _probing(DOGE_PROBES[mode], options)


def doremi(options: Mapping[str, Any]) -> Requires:
    """DoReMi: a reference model, and for token-wise excess a probe."""
    if choice("clip", options.get("clip", "source"), DOREMI_CLIPS) == "tokens":
        return replace(_probing(DOREMI_PROBE, options), reference=True)
    return Requires(action="weights", observation="dict", signals=True, reference=True)


def multidds(options: Mapping[str, Any]) -> Requires:
    """MultiDDS: cosines with the held-out gradients."""
    return _probing(MULTIDDS_PROBE, options)


def mos(options: Mapping[str, Any]) -> Requires:
    """MoS: likeness of embeddings, or perplexity ratios."""
    reward = choice("reward", options.get("reward", "similarity"), tuple(MOS_PROBES))
    return _probing(MOS_PROBES[reward], options)


def less(options: Mapping[str, Any]) -> Requires:
    """LESS: projected gradients."""
    return _probing(LESS_PROBE, options)


def _probing(probe: str, options: Mapping[str, Any]) -> Requires:
    """A rule that reads one probe, every ``period`` decisions."""
    period = whole("period", options.get("period", PERIOD))
    return Requires(action="weights", observation="dict", signals=True, probes={probe: period})


def cost(requires: Requires) -> str:
    """What the needs of a rule cost in tokens, in words; empty if nothing.

    >>> cost(doge({}))
    'gradient_alignment every 4 decisions: 3 passes over its probe rows, 3 over the reward split'
    """
    words = []
    for name, period in requires.probes.items():
        kind = PROBES[name]
        over = "pass" if kind.passes == 1 else "passes"
        passes = [f"{kind.passes} {over} over its probe rows"] if kind.passes else []
        passes += [f"{kind.target_passes} over the reward split"] if kind.target_passes else []
        words.append(f"{name} every {period} decisions: {', '.join(passes) or 'nothing'}")
    return "; ".join([*words, *(["environment.reference"] if requires.reference else [])])
