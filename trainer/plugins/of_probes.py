"""What a probe has to hold, in the fast world and on a language model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.probes import ProbeKind
from mixgym.trainer.plugins.checking import (
    Check,
    FlawError,
    need,
    need_close,
    need_same,
    need_summary,
)

if TYPE_CHECKING:
    from mixgym.envs.curves.probes import Seen

_TASKS, _SHAPE = 3, (5, 3)
_TEXT: dict[str, Any] = {
    "sources": {"addition": {"embedded": "addition", "rows": 60}, "noise": {"embedded": "noise"}},
    "data": {"max_length": 64, "strata": 2},
    "training": {"steps": 2, "interval": 1, "packs": 2},
}


def checks(word: str, kind: ProbeKind) -> Iterator[Check]:
    """The checks of a probe."""
    yield "summary", lambda: need_summary(kind.summary)
    if kind.curves is not None:
        yield "fast world: finite", lambda: _finite_curves(kind)
        yield "fast world: deterministic", lambda: _deterministic_curves(kind)
        yield "fast world: batched equals single", lambda: _batched_curves(kind)
    if kind.language is not None:
        yield "text: finite, deterministic, cost declared", lambda: _on_text(word, kind)


# --- fast world -------------------------------------------------------------------------------


def _seen(indices: list[int], trained: float) -> "Seen":
    """Tasks of several sizes side by side, after some training."""
    from mixgym.envs.curves.dynamics import CurveState, Pace, advance, mastery
    from mixgym.envs.curves.probes import Seen
    from mixgym.envs.curves.task import stack_tasks, supervised_tokens
    from mixgym.envs.curves.tasks.prior import sample_task

    task = stack_tasks([sample_task(i, sources=3 + i, strata=3) for i in indices], *_SHAPE)
    state = CurveState.start(task)
    share = task.size / task.size.sum((-2, -1), keepdims=True)
    tokens = supervised_tokens(task, share, trained * task.budget)
    steps = np.full(len(indices), 10.0)
    state = advance(task, state, tokens, Pace(steps, np.ones(len(indices))))
    return Seen(task, state, mastery(task, state))


def _values(kind: ProbeKind, seen: "Seen") -> FloatArray:
    assert kind.curves is not None
    values = np.asarray(kind.curves(seen))
    present = seen.task.present if kind.level == "stratum" else seen.task.present.any(-1)
    need(
        values.shape == present.shape,
        f"level is {kind.level}, and curves gave the shape {values.shape} for {_TASKS} tasks of "
        f"{_SHAPE[0]} sources and {_SHAPE[1]} strata; it has to be {present.shape}",
    )
    return np.where(present, values, 0.0)


def _finite_curves(kind: ProbeKind) -> str:
    for trained in (0.0, 0.5):
        values = _values(kind, _seen(list(range(_TASKS)), trained))
        bad = np.argwhere(~np.isfinite(values))
        need(
            not len(bad),
            f"it is {values[tuple(bad[0])] if len(bad) else ''} in a task after {trained:.0%} of "
            "its budget; guard divisions and logarithms (np.maximum(x, 1e-12))",
        )
    return f"in {_TASKS} tasks, at the start and half-way"


def _deterministic_curves(kind: ProbeKind) -> str:
    seen = _seen(list(range(_TASKS)), 0.5)
    need_same(
        _values(kind, seen),
        _values(kind, seen),
        "the same state gave two values; draw nothing: errors of measurement are added outside",
    )
    return "twice the same"


def _batched_curves(kind: ProbeKind) -> str:
    together = _values(kind, _seen(list(range(_TASKS)), 0.5))
    for index in range(_TASKS):
        alone = _values(kind, _seen([index], 0.5))[0]
        need_close(
            together[index],
            alone,
            f"task {index} has another value in a batch than alone; reduce over the last axes "
            "only, and let leading axes know nothing of each other",
        )
    return f"{_TASKS} tasks together and alone"


# --- text -------------------------------------------------------------------------------------


def _on_text(word: str, kind: ProbeKind) -> str:
    """One small model; everything is looked at on it, since making it is what takes time."""
    from mixgym.envs.build import build_environment
    from mixgym.envs.options import WorldOptions

    section = {"probes": {word: 1}, "probe_rows": 3}
    if kind.needs_reference:
        return "not looked at: it compares with a reference model"
    env = build_environment(WorldOptions.model_validate({**_TEXT, "environment": section}))
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape or (), np.float32)
    env.step(zero)
    learner: Any = env.world.learner
    before, counted = _fingerprint(learner), _Counter(learner)
    with counted:
        first = learner.probe(word)
    second = learner.probe(word)
    need_same(
        first.values,
        second.values,
        "the same model and rows gave two values; draw nothing, and measure in evaluation mode "
        "(with probes.probed.looking())",
    )
    need(
        before == _fingerprint(learner),
        "parameters, gradients or the state of random numbers are not what they were; work on "
        "copies, and take gradients by torch.autograd.grad",
    )
    declared = first.tokens
    if counted.tokens > declared:
        raise FlawError(
            f"it read {counted.tokens:,} tokens and declares {declared:,}; raise passes (or "
            "target_passes) of its ProbeKind: a pass forward and backward counts as 3"
        )
    known = int(np.isfinite(first.values).sum())
    return f"{known} values, {counted.tokens:,} of {declared:,} declared tokens read"


def _fingerprint(learner: Any) -> tuple[Any, ...]:
    """What a probe may not change, as plain numbers."""
    import torch

    module = learner.trained.module
    sums = [(float(p.detach().double().sum()), p.grad is None) for p in module.parameters()]
    drawn = (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002
    return (*sums, module.training, *drawn)


class _Counter:
    """Counts the tokens that a model reads."""

    def __init__(self, learner: Any) -> None:
        self.tokens = 0
        self._module = learner.trained.module

    def __enter__(self) -> "_Counter":
        self._hook = self._module.base_model.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, _module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", given[0] if given else None)
        ids = named.get("inputs_embeds")[..., 0] if ids is None else ids  # type: ignore[index]
        self.tokens += int(ids.numel())
