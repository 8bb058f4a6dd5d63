"""Probes of a closed-form learner: pure functions over any leading axes.

Gradients follow from the learning curves. A step along source k's gradient lowers the NLL of
source i by their inner product; here a token of source k lowers it by what is transferred times
the slope of i's curve. So these falls, per share of the budget, stand for the inner products
<g_i, g_k>, and the root of a source's own fall for the norm of its gradient. A batch's gradient has
noise besides, which data that cannot be learnt has too: its square is added to that of the norm,
per nat of NLL. Losses on training rows have no cost of over-fitting. The unconditional loss that
IFD divides by is taken to fall half as much as the conditional one.

Measurements are off by a relative error, :data:`NOISE` times the task's; of what compares with the
start, the difference is, so that it is exact before anything is trained (the rows are the same).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.dynamics import (
    CurveState,
    Pace,
    advance,
    common_slope,
    gradient_norm,
    mastery,
    nll,
    train_nll,
    worth,
)
from mixgym.envs.curves.exposure import rarity_slope
from mixgym.envs.curves.task import CurveTask, rate_until, supervised_tokens
from mixgym.envs.errors import ConfigError
from mixgym.envs.probes import ProbeKind, find_probe
from mixgym.envs.random_streams import EpisodeNoise
from mixgym.envs.spaces.mixture import last_sum

NOISE = 10.0  # error of a probe, in errors of a held-out measurement: it reads fewer rows
LARGEST = 0.02  # error of a held-out measurement for that: probes read training rows instead
_GRAIN = 0.25  # square of the gradient's noise in the probe rows of a source, per nat
_ROW_GRAIN = 8.0  # the same of a single row, in units of _GRAIN
_ROW_TOKENS = 100  # pretended tokens of a row
_STEP_READS = 1024.0  # tokens, in the reference's training
_REFERENCE_STEPS = 32  # that the reference's training is integrated in


@dataclass(frozen=True)
class Seen:
    """A learner that is probed.

    Attributes:
        task: the constants.
        state: what has been trained.
        known: float64[..., K, G], the state's mastery.
        reference: float64[..., K, G], training NLL of the reference, or None.
    """

    task: CurveTask
    state: CurveState
    known: FloatArray
    reference: FloatArray | None = None

    @property
    def nll(self) -> FloatArray:
        """float64[..., K, G], NLL of training rows."""
        return train_nll(self.task, self.state, self.known)

    def falls(self) -> FloatArray:
        """float64[..., K, K], fall of source i's NLL by source k's tokens, per share of budget.

        Tokens of k are spread over its strata by their size, and count what they are worth now.
        """
        task = self.task
        slope = gradient_norm(task, self.state) * self.task.cell_mean
        size = np.maximum(last_sum(task.size), 1e-300)[..., None]
        share = task.size / size * worth(task, self.state, self.known)
        reach = slope @ np.swapaxes(share @ task.spread, -1, -2)
        fall: FloatArray = task.transfer * reach
        if task.common:  # any token teaches this, whatever its source
            there = np.asarray(task.present.any(-1))
            everyone = common_slope(task, self.state) * there[..., None, :]
            fall = fall + everyone * there[..., :, None]
        if task.exposes:
            fall = (
                fall + rarity_slope(task, self.state.shown, self.state.time) * there[..., None, :]
            )
        return fall * self._supervised[..., None, None]

    @property
    def _supervised(self) -> FloatArray:
        """float64[...], supervised tokens of the budget, where rows are drawn by their number."""
        task = self.task
        weights = task.size / np.maximum(last_sum(last_sum(task.size)), 1e-300)[..., None, None]
        return last_sum(last_sum(supervised_tokens(task, weights, task.budget)))

    def likeness(self) -> FloatArray:
        """float64[..., K, K], cosine of the sources' embeddings: transfer, either way."""
        return 0.5 * (self.task.transfer + np.swapaxes(self.task.transfer, -1, -2))


def constant_probe(name: str, task: CurveTask) -> FloatArray:
    """float64[..., K] or [..., K, G], what is known of the rows: here every token costs the same.

    NaN where there are none.
    """
    present = task.present if find_probe(name).level == "stratum" else task.present.any(-1)
    return np.where(present, 0.0, np.nan)


def probe(name: str, seen: Seen, noise: FloatArray) -> FloatArray:
    """The value of a probe; NaN in absent sources and cells.

    Args:
        name: of :data:`mixgym.envs.probes.PROBES`, but for the free ones.
        seen: the learner.
        noise: float64[..., K, G], normal numbers of this measurement.

    Returns:
        float64[..., K] or float64[..., K, G] by the probe's level.
    """
    error = NOISE * np.minimum(seen.task.noise, LARGEST)
    present = seen.task.present
    kind = find_probe(name)
    if kind.level == "source":
        value = _by_source(name, kind)(seen) * (1.0 + error[..., 0] * noise[..., 0])
        return np.where(present.any(-1), value, np.nan)
    error = 1.0 + error * noise
    own = kind.curves
    value = STRATUM_VALUES[name](seen, error) if own is None else own(seen) * error
    return np.where(present, value, np.nan)


def check_measurable(names: Iterable[str]) -> None:
    """Refuse plug-ins that have no value in the fast world.

    Raises:
        ConfigError: naming the probe.
    """
    for name in names:
        kind = find_probe(name)
        if kind.curves is None and kind.language is not None:
            raise ConfigError(
                f"environment.probes: {name} is measured on a language model only; give its "
                "ProbeKind curves=..., a function of the fast world, or leave it out"
            )


def _by_source(name: str, kind: ProbeKind) -> Callable[[Seen], FloatArray]:
    return SOURCE_VALUES[name] if kind.curves is None else kind.curves


def probe_noise(name: str, episode: int, shape: tuple[int, int], count: int) -> FloatArray:
    """float64[count, K, G], the noise of a probe's first measurements in an episode."""
    return EpisodeNoise(f"curves: probe {name}").start(episode).standard_normal((count, *shape))


def probe_tokens(name: str, cells: int, rows: int) -> int:
    """What a probe would cost: pretended tokens, in passes forward."""
    kind = find_probe(name)
    return (kind.passes + kind.target_passes) * cells * rows * _ROW_TOKENS


def baseline_tokens(passes: int, cells: int, rows: int) -> int:
    """What so many passes over the probe rows would cost."""
    return passes * cells * rows * _ROW_TOKENS


def reference_state(task: CurveTask) -> CurveState:
    """What the whole budget reaches under the proportional mixture."""
    total = np.maximum(last_sum(last_sum(task.size)), 1e-300)[..., None, None]
    tokens = supervised_tokens(task, task.size / total, task.budget / _REFERENCE_STEPS)
    steps = task.budget / _REFERENCE_STEPS / _STEP_READS
    state = CurveState.start(task)
    for part in range(_REFERENCE_STEPS):
        until = [rate_until(task, np.asarray(n / _REFERENCE_STEPS)) for n in (part, part + 1)]
        pace = Pace(steps, (until[1] - until[0]) * _REFERENCE_STEPS)
        state = advance(task, state, tokens, pace)
    return state


def reference_losses(task: CurveTask) -> tuple[FloatArray, FloatArray]:
    """(held-out, training) NLL of the reference, float64[..., K, G] each."""
    state = reference_state(task)
    known = mastery(task, state)
    return nll(task, state, known), train_nll(task, state, known)


# --- source level ---------------------------------------------------------------------------


def _own(fall: FloatArray) -> FloatArray:
    """float64[..., K], squared norm of each source's gradient."""
    return np.maximum(np.diagonal(fall, axis1=-2, axis2=-1), 1e-12)


def _norm(seen: Seen, grain: float) -> FloatArray:
    entropy = last_sum(seen.nll * seen.task.cell_mean)
    return np.sqrt(_own(seen.falls()) + grain * entropy)


def _targets_of(seen: Seen) -> FloatArray:
    targets: FloatArray = seen.task.targets / seen.task.targets.sum(-1, keepdims=True)
    return targets


def target_falls(seen: Seen, falls: FloatArray | None = None) -> FloatArray:
    """float64[..., K], target-weighted fall of NLL by tokens of each source, per share of budget.

    Minus the sum over i of target_i transfer(i, k) dL_i / dn_i; ``falls``: if known already.
    """
    known = seen.falls() if falls is None else falls
    inner: FloatArray = (_targets_of(seen)[..., None, :] @ known)[..., 0, :]
    return inner


def _to_target(seen: Seen) -> tuple[FloatArray, FloatArray, FloatArray]:
    """<g_k, g_target> [..., K], |g_target| [..., 1], the falls [..., K, K]."""
    fall = seen.falls()
    targets, inner = _targets_of(seen), target_falls(seen, fall)
    length = np.sqrt(np.maximum((inner * targets).sum(-1, keepdims=True), 1e-12))
    return inner, length, fall


def _alignment(seen: Seen) -> FloatArray:
    inner, length, _ = _to_target(seen)
    return inner / length


def _projected(seen: Seen) -> FloatArray:
    inner, length, fall = _to_target(seen)
    return np.clip(inner / length / np.sqrt(_own(fall)), -1.0, 1.0)


def _cosine(seen: Seen) -> FloatArray:
    fall = seen.falls()
    own = np.sqrt(_own(fall))
    cosine = np.clip(fall / (own[..., :, None] * own[..., None, :]), -1.0, 1.0)
    targets = seen.task.targets / seen.task.targets.sum(-1, keepdims=True)
    mean: FloatArray = (targets[..., None, :] @ cosine)[..., 0, :]
    return mean


def _influence(seen: Seen) -> FloatArray:
    fall = seen.falls()
    return fall.sum(-2) - np.diagonal(fall, axis1=-2, axis2=-1)


def _similarity(seen: Seen) -> FloatArray:
    count = np.maximum(seen.task.present.any(-1).sum(-1), 1)[..., None]
    return last_sum(seen.likeness()) / count


SOURCE_VALUES: dict[str, Callable[[Seen], FloatArray]] = {
    "gradient_norm": lambda seen: _norm(seen, _GRAIN),
    "gradient_norm_examples": lambda seen: _norm(seen, _ROW_GRAIN * _GRAIN),
    "gradient_norm_last": lambda seen: 0.5 * _norm(seen, _GRAIN),
    "gradient_norm_examples_last": lambda seen: 0.5 * _norm(seen, _ROW_GRAIN * _GRAIN),
    "cosine_similarity": _similarity,
    "gradient_alignment": _alignment,
    "gradient_cosine": _cosine,
    "gradient_influence": _influence,
    "projected_alignment": _projected,
}

# --- stratum level --------------------------------------------------------------------------


def _difference(seen: Seen, error: FloatArray) -> FloatArray:
    """NLL now minus NLL at the start, as measured."""
    return (seen.nll - _at_start(seen.task)) * error


def _at_start(task: CurveTask) -> FloatArray:
    return train_nll(task, CurveState.start(task))


def _loss_ratio(seen: Seen, error: FloatArray) -> FloatArray:
    start = _at_start(seen.task)
    return 1.0 + _difference(seen, error) / np.where(seen.task.present, start, 1.0)


def _excess(seen: Seen, error: FloatArray) -> FloatArray:
    assert seen.reference is not None
    return np.maximum(seen.nll - seen.reference, 0.0) * error


STRATUM_VALUES: dict[str, Callable[[Seen, FloatArray], FloatArray]] = {
    "perplexity_ratio": lambda seen, error: np.exp(_difference(seen, error)),
    "nll_difference": _difference,
    "loss_ratio": _loss_ratio,
    "ifd_ratio": lambda seen, error: np.exp(0.5 * _difference(seen, error)),
    "loss": lambda seen, error: seen.nll * error,
    "excess_loss": _excess,
}
