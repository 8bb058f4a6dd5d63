"""What a merge method has to hold."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mixgym.envs.errors import ConfigError
from mixgym.trainer.merging.methods.catalogue import MethodSpec, default_of
from mixgym.trainer.plugins.checking import (
    Check,
    frozen,
    need,
    need_close,
    need_same,
    need_summary,
)

_ELEMENTS = 60


def checks(word: str, spec: MethodSpec) -> Iterator[Check]:
    """The checks of a merge method."""
    if spec.compute is None:
        raise ConfigError(f"check-plugin {word}: is built in; give a plug-in's word")
    yield "summary", lambda: need_summary(spec.summary)
    yield "finite", lambda: _finite(spec)
    yield "deterministic", lambda: _deterministic(spec)
    yield "element by element", lambda: _by_element(spec)
    yield "parameters declared", lambda: ", ".join(spec.accepts) or "it takes none"


def _merged(spec: MethodSpec, start: int = 0, stop: int = _ELEMENTS) -> Any:
    """Some elements of a tensor, merged with the default parameters."""
    from mixgym.trainer.merging.methods.catalogue import PER_MODEL
    from mixgym.trainer.merging.methods.sparsify import StageSettings

    least, most = spec.models
    count = min(max(least, 3), most or 3)
    values = np.random.default_rng(0).normal(size=(count + 1, _ELEMENTS)).astype(np.float32)
    settings = StageSettings(
        name="layers.0.weight",
        elements=_ELEMENTS,
        row=6,
        models=count,
        work=np.dtype(np.float32),
        seed=0,
        per_model={
            key: [float(default_of(spec, key))] * count for key in spec.accepts if key in PER_MODEL
        },
        shared={key: default_of(spec, key) for key in spec.accepts if key not in PER_MODEL},
    )
    parts = [frozen(part[start:stop]) for part in values]
    base = None if spec.base == "unused" else parts[-1]
    assert spec.compute is not None
    return np.asarray(spec.compute(parts[:-1], base, settings))


def _finite(spec: MethodSpec) -> str:
    merged = _merged(spec)
    need(
        merged.shape == (_ELEMENTS,),
        f"it gave an array {merged.shape} for {_ELEMENTS} elements; give one value for each",
    )
    need(bool(np.isfinite(merged).all()), "a value is NaN or infinite; guard divisions")
    return f"{_ELEMENTS} elements"


def _deterministic(spec: MethodSpec) -> str:
    need_same(
        _merged(spec),
        _merged(spec),
        "the same models gave two merges; draw nothing, or by settings.seed and settings.name",
    )
    return "twice the same"


def _by_element(spec: MethodSpec) -> str:
    cut = _ELEMENTS // 3
    need_close(
        np.concatenate([_merged(spec, 0, cut), _merged(spec, cut)]),
        _merged(spec),
        "elements depend on the stretch of the tensor that they are shown in, which is a matter of "
        "memory; compute each from the elements in its place alone",
    )
    return "a tensor in two stretches and whole"
