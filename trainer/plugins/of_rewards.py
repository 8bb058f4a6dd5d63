"""What a reward has to hold."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mixgym.envs.rewards import Reward, RewardInput, RewardKind
from mixgym.trainer.plugins.checking import (
    Check,
    frozen,
    need,
    need_close,
    need_same,
    need_summary,
)

_ENVIRONMENTS, _SOURCES, _STRATA = 5, 4, 3


def checks(word: str, kind: RewardKind) -> Iterator[Check]:
    """The checks of a reward."""
    batch = _batch(np.random.default_rng(0))
    declared = _as_declared(batch, kind)
    yield "summary", lambda: need_summary(kind.summary)
    yield "shape", lambda: _shape(kind.compute(declared))
    yield "finite", lambda: _finite(kind.compute(declared), declared)
    yield "deterministic", lambda: _deterministic(kind, declared)
    yield "batched equals single", lambda: _batched(kind, declared)
    yield "padding", lambda: _padding(kind, declared)
    yield "components", lambda: _components(kind.compute(declared))
    yield "cost declared", lambda: _cost(kind, batch)


def _batch(rng: np.random.Generator) -> RewardInput:
    """What several environments saw; one source is a pool, one has no held-out rows."""
    rows, cells = (_ENVIRONMENTS, _SOURCES), (_ENVIRONMENTS, _SOURCES, _STRATA)
    targets = np.tile([1.0, 0.5, 0.0, 2.0], (_ENVIRONMENTS, 1))
    before = rng.uniform(1, 3, rows)
    before[:, 3] = np.nan
    whole: dict[str, Any] = {
        "before": before,
        "after": before - rng.uniform(-0.2, 0.5, rows),
        "targets": targets,
        "start": before + 0.3,
        "weight": rng.dirichlet(np.ones(_SOURCES), _ENVIRONMENTS),
        "strata": rng.dirichlet(np.ones(_STRATA), rows),
        "prior": rng.dirichlet(np.ones(_SOURCES), _ENVIRONMENTS),
        "prior_strata": rng.dirichlet(np.ones(_STRATA), rows),
        "source_probe": np.where(rng.random(rows) < 0.2, np.nan, rng.uniform(0, 1, rows)),
        "stratum_probe": np.where(rng.random(cells) < 0.2, np.nan, rng.uniform(0, 1, cells)),
        "draws": rng.random((_ENVIRONMENTS, _SOURCES + 1)),
        "epochs": rng.uniform(0, 5, rows),
        "probe_cost": rng.random(_ENVIRONMENTS),
        "gains": rng.normal(size=rows),
        "seconds": rng.uniform(0.5, 2, _ENVIRONMENTS),
    }
    return RewardInput(**{name: frozen(values) for name, values in whole.items()})


def _as_declared(batch: RewardInput, kind: RewardKind) -> RewardInput:
    """Without what the reward does not declare that it reads."""
    left_out: dict[str, Any] = {}
    if not kind.probes:
        left_out |= dict.fromkeys(("source_probe", "stratum_probe", "draws"))
    if not kind.gains:
        left_out |= {"gains": None}
    return replace(batch, **left_out)


def _shape(reward: Any) -> str:
    need(isinstance(reward, Reward), f"it gave {type(reward).__name__}; return a Reward")
    value, local = np.shape(reward.value), np.shape(reward.local)
    wanted = ((_ENVIRONMENTS,), (_ENVIRONMENTS, _SOURCES))
    need(
        (value, local) == wanted,
        f"value has the shape {value} and local {local} for {_ENVIRONMENTS} environments of "
        f"{_SOURCES} sources; reduce over the last axis only (axis=-1), so that it is "
        f"{wanted[0]} and {wanted[1]}",
    )
    return f"a value for each of {_ENVIRONMENTS} environments, a part for each source"


def _finite(reward: Reward, seen: RewardInput) -> str:
    bad = np.flatnonzero(~np.isfinite(np.asarray(reward.value)))
    need(
        not len(bad),
        f"value is {np.asarray(reward.value)[bad[:1]]} where a source has no held-out rows (its "
        "losses are NaN) or no target; leave such sources out, as mixgym.envs.rewards does",
    )
    measured = np.isfinite(seen.before)
    need(
        bool(np.isfinite(reward.local[measured]).all()) or not np.isfinite(reward.local).any(),
        "local is NaN or infinite for sources that are measured; give each its own part",
    )
    return "also where a source is not measured"


def _deterministic(kind: RewardKind, seen: RewardInput) -> str:
    need_same(
        kind.compute(seen),
        kind.compute(seen),
        "the same input gave two rewards; draw nothing, or take seen.draws (declare probes=True)",
    )
    return "twice the same, and the input is left as it was"


def _one(seen: RewardInput, index: int) -> RewardInput:
    values = {f.name: getattr(seen, f.name) for f in fields(seen)}
    return RewardInput(**{n: v[index] if np.ndim(v) else v for n, v in values.items()})


def _batched(kind: RewardKind, seen: RewardInput) -> str:
    together = kind.compute(seen)
    for index in range(_ENVIRONMENTS):
        alone = kind.compute(_one(seen, index))
        flaw = (
            f"environment {index} of a batch gets {np.asarray(together.value)[index]}, and alone "
            f"{alone.value}; let environments (leading axes) know nothing of each other"
        )
        need_close(np.asarray(together.value)[index], alone.value, flaw)
        need_close(together.local[index], alone.local, flaw.replace(" gets", ", in local,", 1))
    return f"{_ENVIRONMENTS} environments together and alone"


def _padding(kind: RewardKind, seen: RewardInput) -> str:
    """A source that is not there, as batches of tasks of other sizes are filled up."""
    rows = ("before", "after", "start", "source_probe", "gains")
    filled: dict[str, Any] = {}
    for field in fields(seen):
        values = getattr(seen, field.name)
        if np.ndim(values) < 2:
            continue
        fill = np.nan if field.name in (*rows, "stratum_probe") else 0.0
        width = [(0, 0), (0, 1), *[(0, 0)] * (np.ndim(values) - 2)]
        filled[field.name] = np.pad(values, width, constant_values=fill)
    padded = replace(seen, **filled)
    need_close(
        kind.compute(padded).value,
        kind.compute(seen).value,
        "a source that is absent (target and weights 0, losses NaN) changes the value; count only "
        "sources with a target that are measured",
    )
    return "an absent source changes nothing"


def _components(reward: Reward) -> str:
    total = sum(np.asarray(part) for part in reward.components.values())
    need_close(
        total,
        reward.value,
        "components do not add up to value; name every term, such as {'mine': value}",
    )
    return ", ".join(reward.components)


def _cost(kind: RewardKind, batch: RewardInput) -> str:
    """That what is not declared is not read follows from the other checks: it was not there."""
    kind.compute(_as_declared(batch, kind))
    need(kind.evaluations >= 1, f"evaluations={kind.evaluations}; a decision is measured once")
    read = [name for name, reads in (("probes", kind.probes), ("gains", kind.gains)) if reads]
    return f"reads {' and '.join(read)}" if read else "reads no probe"
