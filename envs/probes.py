"""Probes by name: extra measurements that agents and rewards can ask for.

A probe looks at one fixed set of training rows, ``environment.probe_rows`` of every stratum, drawn
once by seed, so that successive values differ by what the model learnt and not by the rows (common
random numbers). Parameters, gradients, optimiser and random streams stay as they were. Its cost is
charged to ``cost.probe_tokens`` in tokens of a forward pass; a token that is also propagated back
counts as three. Nothing here imports NumPy or torch: the command line lists this registry.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import check_signature
from mixgym.envs.plugins.registry import Registry

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
        curves: of a plug-in, its value in the fast world: takes a
            :class:`~mixgym.envs.curves.probes.Seen`, any leading axes, and knows no noise; None
            where it has none there.
        language: of a plug-in, its value on a language model: takes a
            :class:`~mixgym.envs.learners.probes.losses.Probes` and leaves all in it as it was; NaN
            in cells without rows.
    """

    summary: str
    level: Level
    passes: int = 1
    target_passes: int = 0
    baseline: int = 0
    needs_reference: bool = False
    logarithm: bool = False
    constant: bool = False
    curves: Callable[[Any], Any] | None = None
    language: Callable[[Any], Any] | None = None


_BUILT_IN = {
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


def as_kind(where: str, thing: Any, **declared: Any) -> ProbeKind:
    """The probe that a plug-in is: a :class:`ProbeKind` that says how it is measured.

    A function alone is none: its level and its cost have to be declared.

    Args:
        where: what errors call it.
        thing: the kind, or with ``declared`` the function of the fast world.
        declared: fields of the kind: ``summary``, ``level``, ``passes``, ``language``, ...

    Raises:
        ConfigError: for anything else, or a probe that is measured nowhere or for nothing.
    """
    if isinstance(thing, ProbeKind):
        kind = replace(thing, **declared)
    elif {"summary", "level"} <= declared.keys():
        kind = ProbeKind(**{"curves": thing, **declared})
    else:
        raise ConfigError(
            f"{where}: is {thing!r}; give a ProbeKind(summary, level, passes=..., curves=..., "
            "language=...), which declares what it costs"
        )
    _check_kind(where, kind)
    return kind


def _check_kind(where: str, kind: ProbeKind) -> None:
    if kind.level not in ("source", "stratum"):
        raise ConfigError(f"{where}: level is {kind.level!r}; give source or stratum")
    if kind.passes < 1 or kind.constant:
        raise ConfigError(
            f"{where}: passes={kind.passes}, constant={kind.constant}; a plug-in declares at least "
            "one pass over its probe rows, and is measured when it is due"
        )
    if kind.curves is None and kind.language is None:
        raise ConfigError(f"{where}: is measured nowhere; give curves=..., language=..., or both")
    if kind.curves is not None:
        check_signature(kind.curves, ("Seen",), f"{where}: curves")
    if kind.language is not None:
        check_signature(kind.language, ("Probes",), f"{where}: language")


PROBES: Registry[ProbeKind] = Registry(
    "probe", "environment.probes", "mixgym.probes", as_kind, _BUILT_IN
)


def find_probe(name: str) -> ProbeKind:
    """The probe of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one, or a plug-in that is none.
    """
    return PROBES[name]


def need_baseline(names: Iterable[str]) -> int:
    """Passes over the probe rows that the start of an episode takes for these probes."""
    found = [find_probe(name) for name in names]
    start = max((kind.baseline for kind in found if not kind.needs_reference), default=0)
    return start + int(any(kind.needs_reference for kind in found))
