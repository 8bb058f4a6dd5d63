"""Merge methods that are functions of plug-ins: what they are shown, and what they may give."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.trainer.merging import MergeError
from mixgym.trainer.merging.methods.catalogue import METHODS, MethodSpec, as_method


def median(values: Any, base: Any, settings: Any) -> Any:
    """The median of the models, element by element."""
    return np.median(values, axis=0)


def nearest(values: Any, base: Any, settings: Any) -> Any:
    """The base plus a weighted delta of the model that is nearest to it."""
    pairs = zip(values, weights(settings), strict=True)
    deltas = np.stack([weight * (value - base) for value, weight in pairs])
    which = np.abs(deltas).argmin(0)
    return base + np.take_along_axis(deltas, which[None], 0)[0]


def weights(settings: Any) -> list[float]:
    return settings.per_model["weight"]


def careless(values: Any, base: Any, settings: Any) -> Any:
    values[0] += 1
    return values[0]


def short(values: Any, base: Any, settings: Any) -> Any:
    return values[0][:1]


NEAREST = MethodSpec(
    "nearest", "the nearest model", "function", "required", accepts=("weight",), compute=nearest
)


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    lunar = ModuleType("lunar_merges")
    vars(lunar).update(median=median, NEAREST=NEAREST, careless=careless, short=short)
    monkeypatch.setitem(sys.modules, "lunar_merges", lunar)
    monkeypatch.setattr(METHODS, "_found", {})


def test_a_function_merges_element_by_element(bench: Any) -> None:
    models = [[1.0, 5.0, 2.0], [2.0, 1.0, 2.0], [9.0, 2.0, -7.0]]
    merged = bench.one("lunar_merges:median", models)
    assert merged.tolist() == [2.0, 2.0, 2.0]
    assert METHODS["lunar_merges:median"].summary == median.__doc__[:-1]


def test_stretches_and_types_change_nothing(bench: Any, make_tensors: Any) -> None:
    paths = [bench.write(f"m{i}", make_tensors(i, torch.bfloat16)) for i in range(3)]
    whole = bench.merge("lunar_merges:median", paths)
    parts = bench.merge("lunar_merges:median", paths, chunk_elements=1, threads=2)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name])
        if tensor.is_floating_point():
            wanted = torch.stack([make_tensors(i, torch.bfloat16)[name] for i in range(3)])
            assert torch.equal(tensor, wanted.float().median(0).values.to(tensor.dtype))


def test_base_and_parameters_reach_the_function(bench: Any) -> None:
    merged = bench.one(
        "lunar_merges:NEAREST", [[1.0, 5.0], [3.0, 2.0]], [0.0, 0.0], parameters={"weight": 0.5}
    )
    assert merged.tolist() == [0.5, 1.0]
    with pytest.raises(MergeError, match="works on differences from a base model"):
        bench.one("lunar_merges:NEAREST", [[1.0], [3.0]])
    with pytest.raises(MergeError, match="has no parameter 'density'; it takes weight"):
        bench.one("lunar_merges:NEAREST", [[1.0]], [0.0], parameters={"density": 0.5})


def test_inputs_are_not_to_be_written_and_shapes_are_checked(bench: Any) -> None:
    with pytest.raises((MergeError, ValueError), match="read-only"):
        bench.one("lunar_merges:careless", [[1.0, 2.0]])
    with pytest.raises(MergeError, match=r"gave an array \(1,\) for 2 elements of tensor w"):
        bench.one("lunar_merges:short", [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (lambda values: values, r"x: takes \(values\), and is called with \(values, base, setti"),
        (MethodSpec("x", "x", "linear", "unused"), "a plug-in has family='function' and compute"),
        (
            MethodSpec("x", "x", "function", "unused", accepts=("heat",), compute=median),
            "accepts heat; parameters are weight",
        ),
    ],
)
def test_what_is_no_method_is_refused(thing: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_method("x", thing)
