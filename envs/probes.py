"""Probes by name: extra measurements that agents and rewards can ask for.

A probe looks at one fixed set of training rows, ``environment.probe_rows`` of every stratum, drawn
once by seed, so that successive values differ by what the model learnt and not by the rows (common
random numbers). Parameters, gradients, optimiser and random streams stay as they were. Its cost is
charged to ``cost.probe_tokens`` in tokens of a forward pass; a token that is also propagated back
counts as three. Nothing here imports NumPy or torch: the command line lists this registry.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mixgym.envs.errors import did_you_mean

Level = Literal["source", "stratum"]

BILEVEL_GAIN = "bilevel_gain"
TOKEN_SECONDS = "seconds_per_token"
TOKEN_SECONDS_STRATA = "seconds_per_token_strata"
BACKWARD = 3  # passes forward that a pass forward and backward is worth


@dataclass(frozen=True)
class ProbeKind:
    """A registered probe.

    Attributes:
        summary: one line for ``mixgym list probes``.
        level: ``source``: float64[K]; ``stratum``: float64[K, G], NaN in strata without rows.
        passes: over the probe rows, in passes forward; 0: it reuses what training measured.
        target_passes: over the reward split, in passes forward.
        baseline: passes over the probe rows at the start of an episode, for what later values are
            compared with.
        needs_reference: whether it compares with ``environment.reference``.
        logarithm: whether values are logarithms; rewards take their exponential.
        constant: whether it is known before the first decision and stays for the episode.
    """

    summary: str
    level: Level
    passes: int = 1
    target_passes: int = 0
    baseline: int = 0
    needs_reference: bool = False
    logarithm: bool = False
    constant: bool = False


PROBES = {
    "gradient_norm": ProbeKind(
        "norm of the gradient of the token-mean loss over the source's probe rows",
        "source",
        passes=BACKWARD,
    ),
    "gradient_norm_examples": ProbeKind(
        "mean over the source's probe rows of the norm of each row's own gradient",
        "source",
        passes=BACKWARD,
    ),
    "gradient_norm_last": ProbeKind(
        "gradient_norm of the last block only: a pass forward and a short one back",
        "source",
        passes=2,
    ),
    "gradient_norm_examples_last": ProbeKind(
        "gradient_norm_examples of the last block's matrices, all rows in one short pass",
        "source",
        passes=2,
    ),
    "cosine_similarity": ProbeKind(
        "mean cosine between the source's embedding and every source's (MoS)", "source"
    ),
    "gradient_alignment": ProbeKind(
        "gradient along the direction of the targets' gradient on the reward split",
        "source",
        passes=BACKWARD,
        target_passes=BACKWARD,
    ),
    "gradient_cosine": ProbeKind(
        "mean over targets of the cosine with their gradient on the reward split (MultiDDS)",
        "source",
        passes=BACKWARD,
        target_passes=BACKWARD,
    ),
    "gradient_influence": ProbeKind(
        "inner product with the sum of the other sources' gradients (DoGE, AC-ODM)",
        "source",
        passes=BACKWARD,
    ),
    "projected_alignment": ProbeKind(
        "cosine of randomly projected gradients, Adam's against the targets' (LESS)",
        "source",
        passes=BACKWARD,
        target_passes=BACKWARD,
    ),
    "perplexity_ratio": ProbeKind(
        "mean over rows of perplexity now over perplexity at the start", "stratum", baseline=1
    ),
    "nll_difference": ProbeKind(
        "mean over rows of NLL now minus NLL at the start: the log of a perplexity ratio",
        "stratum",
        baseline=1,
        logarithm=True,
    ),
    "loss_ratio": ProbeKind(
        "mean over rows of NLL now over NLL at the start", "stratum", baseline=1
    ),
    "ifd_ratio": ProbeKind(
        "mean over rows of IFD, PPL(y|x) / PPL(y), now over IFD at the start",
        "stratum",
        passes=2,
        baseline=2,
    ),
    "loss": ProbeKind("mean over rows of NLL", "stratum"),
    "excess_loss": ProbeKind(
        "mean over tokens of the NLL above the reference model's, at least 0 (DoReMi)",
        "stratum",
        baseline=1,
        needs_reference=True,
    ),
    "training_loss_ratio": ProbeKind(
        "perplexity of the last interval's training over the held-out one at the start; free",
        "stratum",
        passes=0,
    ),
    BILEVEL_GAIN: ProbeKind(
        "what a source is worth to validation, as step rule bilevel found last; free",
        "source",
        passes=0,
    ),
    TOKEN_SECONDS: ProbeKind(
        "log of the predicted seconds per supervised token, over the mean of the sources; free",
        "source",
        passes=0,
        logarithm=True,
        constant=True,
    ),
    TOKEN_SECONDS_STRATA: ProbeKind(
        "the same of every stratum, over the same mean; free",
        "stratum",
        passes=0,
        logarithm=True,
        constant=True,
    ),
}


def find_probe(name: str) -> ProbeKind:
    """The probe of that name.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name in PROBES:
        return PROBES[name]
    raise ValueError(f"unknown probe {name!r}; {did_you_mean(name, PROBES)}")


def need_baseline(names: Iterable[str]) -> int:
    """Passes over the probe rows that the start of an episode takes for these probes."""
    found = [find_probe(name) for name in names]
    start = max((kind.baseline for kind in found if not kind.needs_reference), default=0)
    return start + int(any(kind.needs_reference for kind in found))
