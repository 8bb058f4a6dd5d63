"""LoRA adapters merged into one adapter, without their base.

The sum of products sum_k w_k s_k B_k A_k is itself one product of stacked factors, so the result
is exact and its rank is the sum of the ranks. It can be cut to a lower rank by singular values.
Averaging or selecting A and B separately is something else (it brings cross terms) and not offered.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.trainer.merging.errors import MergeError
from mixgym.trainer.merging.files import tokenizers
from mixgym.trainer.merging.files.adapter import AdapterFile, Matrix
from mixgym.trainer.merging.files.checkpoint import TensorInfo
from mixgym.trainer.merging.files.folder import ADAPTER_CONFIG
from mixgym.trainer.merging.files.writing import OutputFolder
from mixgym.trainer.merging.methods.numerics import STORAGE
from mixgym.trainer.merging.methods.parameters import resolve
from mixgym.trainer.merging.recipe import Recipe
from mixgym.trainer.merging.report import MergeReport

_PREFIX = "base_model.model."
_SAME = ("fan_in_fan_out", "task_type", "base_model_name_or_path")


@dataclass(frozen=True)
class Stacked:
    """The merged factors of one weight: B @ A is its delta."""

    a: Matrix
    b: Matrix
    discarded: float
    """Share of the squared length that cutting the rank has lost."""


def merge_adapters(recipe: Recipe, *, dry_run: bool = False) -> MergeReport:
    """Merge adapters into an adapter folder.

    Args:
        recipe: With ``method: lora_cat``.
        dry_run: Check and compute, write nothing.

    Raises:
        MergeError: Naming the adapter, the tensor and the fix.
    """
    began = time.monotonic()
    adapters = [_open(entry.model) for entry in recipe.models]
    try:
        _check(adapters)
        tokenizer = tokenizers.donor_of(adapters, recipe.tokenizer_from)
        warnings = _warnings(recipe, adapters, tokenizer)
        names = sorted({name for adapter in adapters for name in adapter.pairs})
        merged = {name: _stack(recipe, adapters, name) for name in names}
        tensors = _tensors(adapters, merged)
        infos = [
            TensorInfo(name, x.shape, STORAGE["F32"], STORAGE["F32"]) for name, x in tensors.items()
        ]
        output = OutputFolder(
            Path(recipe.out), infos, 1 << 62, recipe.overwrite, stem="adapter_model"
        )
        if dry_run:
            output.check()
        else:
            _write(recipe, adapters[0], merged, tensors, output, tokenizers.files_of(tokenizer))
    finally:
        for adapter in adapters:
            adapter.file.close()
    return _report(recipe, merged, infos, output, dry_run, time.monotonic() - began, warnings)


def _warnings(recipe: Recipe, adapters: list[AdapterFile], tokenizer: Path | None) -> list[str]:
    """What is given and not read, and templates that are not taken over."""
    found = []
    if recipe.base is not None:
        found.append(
            f"base {recipe.base} is not read by lora_cat, which merges the adapters alone; leave "
            "it out, or take another method for a full model"
        )
    if tokenizer is not None and recipe.tokenizer_from is None:
        found += tokenizers.template_warnings(adapters, tokenizer)
    return found


def _open(path: str) -> AdapterFile:
    folder = Path(path).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MergeError(
            f"model {path} is not a LoRA folder; lora_cat merges adapters only, the other methods "
            "merge models and adapters alike"
        )
    return AdapterFile(folder, path)


def _check(adapters: list[AdapterFile]) -> None:
    first = adapters[0]
    for adapter in adapters:
        if adapter.replacements:
            name = next(iter(adapter.replacements))
            raise MergeError(
                f"model {adapter.label} holds the whole tensor {name} beside its factors; merge "
                "with --method linear and --base, which writes a full model"
            )
        for key in _SAME:
            if adapter.options.get(key) != first.options.get(key):
                raise MergeError(
                    f"{key} is {first.options.get(key)!r} in model {first.label} and "
                    f"{adapter.options.get(key)!r} in model {adapter.label}; merge adapters of one "
                    "base and task"
                )


def _stack(recipe: Recipe, adapters: list[AdapterFile], name: str) -> Stacked:
    per_model, shared = resolve(recipe, name, 1)
    weights = per_model["weight"]
    total = fsum(weights) if shared["normalize"] else 1.0
    above, beside = [], []
    for adapter, weight in zip(adapters, weights, strict=True):
        pair = adapter.pairs.get(name)
        if pair is not None:
            above.append(adapter.matrix(pair.a))
            beside.append(adapter.matrix(pair.b) * (weight / total * pair.scaling))
    shapes = {(b.shape[0], a.shape[1]) for a, b in zip(above, beside, strict=True)}
    if len(shapes) > 1:
        raise MergeError(f"tensor {name} has different shapes among the adapters: {sorted(shapes)}")
    a, b = np.concatenate(above), np.concatenate(beside, axis=1)
    rank = int(shared["rank"])
    return _cut(a, b, rank) if 0 < rank < len(a) else Stacked(a, b, 0.0)


def _cut(a: Matrix, b: Matrix, rank: int) -> Stacked:
    """Keep the ``rank`` largest singular values of b @ a, found from the small factors."""
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(r_b @ r_a.T)
    root = np.sqrt(s[:rank])
    energy = float(np.sum(s**2))
    lost = float(np.sum(s[rank:] ** 2)) / energy if energy > 0 else 0.0
    return Stacked(root[:, None] * (v[:rank] @ q_a.T), (q_b @ u[:, :rank]) * root, lost)


def _tensors(adapters: list[AdapterFile], merged: dict[str, Stacked]) -> dict[str, Matrix]:
    tensors: dict[str, Matrix] = {}
    for name, stacked in merged.items():
        pair = next(x.pairs[name] for x in adapters if name in x.pairs)
        tensors[pair.a], tensors[pair.b] = stacked.a, stacked.b
    return tensors


def _write(
    recipe: Recipe,
    first: AdapterFile,
    merged: dict[str, Stacked],
    tensors: dict[str, Matrix],
    output: OutputFolder,
    copies: Mapping[str, Path],
) -> None:
    record = {
        "recipe": recipe.model_dump(mode="json", exclude={"threads", "chunk_elements", "out"}),
        "discarded_energy": {name: stacked.discarded for name, stacked in merged.items()},
    }
    with output:
        for name, matrix in tensors.items():
            output.write(name, np.ascontiguousarray(matrix, np.float32).ravel())
        options = _options(first, merged)
        texts = {ADAPTER_CONFIG: options, "merge.json": record}
        output.commit(dict(copies), {k: json.dumps(v, indent=2) + "\n" for k, v in texts.items()})


def _options(first: AdapterFile, merged: dict[str, Stacked]) -> dict[str, Any]:
    """Return peft's options, such that every scaling is 1."""
    ranks = {name.removesuffix(".weight"): len(x.a) for name, x in merged.items()}
    common = max(ranks.values(), default=1)
    other = {name: rank for name, rank in ranks.items() if rank != common}
    return {
        **first.options,
        "r": common,
        "lora_alpha": common,
        "use_rslora": False,
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in ranks}),
        "inference_mode": True,
    }


def _report(
    recipe: Recipe,
    merged: dict[str, Stacked],
    infos: list[TensorInfo],
    output: OutputFolder,
    dry_run: bool,
    seconds: float,
    warnings: list[str],
) -> MergeReport:
    lost = max((x.discarded for x in merged.values()), default=0.0)
    if lost:
        warnings = [*warnings, f"cutting the rank lost up to {lost:.2%} of a delta's energy"]
    return MergeReport(
        out=str(output.target),
        method=recipe.method,
        models=[entry.model for entry in recipe.models],
        base=None,
        is_dry_run=dry_run,
        tensors=len(infos),
        parameters=sum(info.elements for info in infos),
        bytes_written=output.total_bytes,
        dtypes={"F32": len(infos)},
        files=output.files,
        seconds=seconds,
        warnings=warnings,
    )
