"""The plan of a merge: every tensor with its sources, types and parameters, checked beforehand.

Only headers and configurations are read. ``engine.py`` carries the plan out.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.trainer.merging.chunk import Origin
from mixgym.trainer.merging.errors import MergeError, MergeMisuseError
from mixgym.trainer.merging.files import compatibility as gates
from mixgym.trainer.merging.files import tokenizers
from mixgym.trainer.merging.files.checkpoint import Checkpoint, TensorInfo
from mixgym.trainer.merging.files.opening import open_checkpoint
from mixgym.trainer.merging.files.vocabulary import BaseVocabulary
from mixgym.trainer.merging.methods.function_kernel import FunctionKernel
from mixgym.trainer.merging.methods.kernels import (
    Combination,
    GramKernel,
    Kernel,
    LinearKernel,
    NearswapKernel,
    RowSlerpKernel,
    StagedKernel,
    build_dense_sum,
    build_linear,
)
from mixgym.trainer.merging.methods.numerics import DTYPE_WORDS, STORAGE, promote, working_type
from mixgym.trainer.merging.methods.parameters import layer_of, resample_rounds, resolve
from mixgym.trainer.merging.methods.random_words import WordStream
from mixgym.trainer.merging.methods.selection import Draws, SelectKernel
from mixgym.trainer.merging.methods.sparsify import StageSettings
from mixgym.trainer.merging.recipe import ModelEntry, Recipe


@dataclass(frozen=True)
class TensorJob:
    """One tensor to be merged.

    Attributes:
        info: What the output holds.
        origins: The models' copies, in the recipe's order.
        base: The base's copy, where the method uses it.
        work: float32 or float64; unused for exact tensors.
        settings: The tensor's parameters; None for exact tensors, which must agree.
    """

    info: TensorInfo
    origins: list[Origin]
    base: Origin | None
    work: np.dtype[Any]
    settings: StageSettings | None


@dataclass
class Plan:
    """What a merge will do.

    Attributes:
        recipe: The recipe, with the base moved to where the method wants it.
        jobs: One per tensor, by name.
        models: The checkpoints to merge.
        base: The base, if one was given.
        donor: The checkpoint whose configuration the output takes over.
        tokenizer: Folder of the tokenizer that is copied.
        warnings: What is unusual but not wrong.
    """

    recipe: Recipe
    jobs: list[TensorJob]
    models: list[Checkpoint]
    base: Checkpoint | None
    donor: Checkpoint
    tokenizer: Path | None
    warnings: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> list[TensorInfo]:
        """What the output holds."""
        return [job.info for job in self.jobs]


def arrange(recipe: Recipe) -> Recipe:
    """Check the number of models, and put the base where the method looks for it.

    A base that is listed among the models as well is not counted as one of them; slerp takes the
    base as its first model.

    Raises:
        MergeError: Naming the method, the number and the fix.
    """
    spec = recipe.spec
    models = list(recipe.models)
    if recipe.base is not None and spec.base != "unused":
        models = [entry for entry in models if entry.model != recipe.base]
    base = recipe.base
    if spec.name == "slerp" and base is not None:
        models.insert(0, ModelEntry(model=base))
        base = None
    if base is None and (spec.base == "required" or _needs_base(recipe)):
        raise MergeMisuseError(
            f"{recipe.method} works on differences from a base model; name the model that all were "
            "trained from with --base"
        )
    least, most = spec.models
    if len(models) < least or (most is not None and len(models) > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        raise MergeMisuseError(
            f"{recipe.method} merges {wanted} model(s){' beside the base' if base else ''}, "
            f"{len(models)} given: {', '.join(entry.model for entry in models) or 'none'}"
        )
    if recipe.vocab == "base" and recipe.base is None:
        raise MergeMisuseError("vocab: base needs a base model; name it with --base")
    return recipe.model_copy(update={"models": tuple(models), "base": base})


def _needs_base(recipe: Recipe) -> bool:
    if recipe.stages[1] != "select":
        return False
    return resample_rounds(recipe) != 0 or recipe.stages[0] != "none"


def make_plan(recipe: Recipe, stack: ExitStack) -> Plan:
    """Open all models and check that they can be merged.

    Args:
        recipe: What to merge.
        stack: Closes the files in the end.

    Raises:
        MergeError: Naming model, tensor and fix.
    """
    given_base = recipe.base
    recipe = arrange(recipe)
    base = _open(given_base, None, stack) if given_base is not None else None
    models: list[Checkpoint] = [_open(e.model, given_base, stack) for e in recipe.models]
    if recipe.vocab == "base" and base is not None:
        models = [BaseVocabulary(model, base) for model in models]
    used = base if recipe.base is not None and _uses_base(recipe) else None
    # a base that only carries adapters says nothing of its own
    carries = used is None and recipe.vocab != "base" and all(_is_adapter(m) for m in models)
    donor = models[0] if carries or base is None else base
    everyone = [donor, *(m for m in models if m is not donor)]
    warnings = [*_unused_base(recipe, base, used, models)]
    warnings += gates.check_configs(everyone, recipe.vocab)
    speak = models if any(m.tokenizer_folder != m.folder for m in models) else everyone
    tokenizer = tokenizers.donor_of(speak, recipe.tokenizer_from)
    if tokenizer is not None and recipe.tokenizer_from is None:
        warnings += tokenizers.template_warnings(speak, tokenizer)
    jobs = _jobs(recipe, models, used)
    return Plan(recipe, jobs, models, base, donor, tokenizer, warnings)


def _is_adapter(model: Checkpoint) -> bool:
    return model.own_folder != model.folder


def _unused_base(
    recipe: Recipe, base: Checkpoint | None, used: Checkpoint | None, models: Sequence[Checkpoint]
) -> list[str]:
    """Say so if a base was given and no number of it is read."""
    is_model = base is not None and base.label in {entry.model for entry in recipe.models}
    if base is None or used is not None or is_model or recipe.vocab == "base":
        return []
    if any(_is_adapter(model) for model in models):
        return []  # the adapters stand on it
    how = "resample=0" if recipe.stages[1] == "select" else recipe.method
    return [
        f"base {base.label} is not read by {how}, which merges the models as they are: it only "
        "gives configuration and tokenizer; leave it out, or take a method that works on "
        "differences, such as task_arithmetic"
    ]


def _open(path: str, base: str | None, stack: ExitStack) -> Checkpoint:
    checkpoint = open_checkpoint(path, base)
    stack.callback(checkpoint.close)
    return checkpoint


def _uses_base(recipe: Recipe) -> bool:
    if recipe.statistics or recipe.spec.family in ("staged", "nearswap"):
        return True
    return _needs_base(recipe) if recipe.stages[1] == "select" else recipe.spec.base != "unused"


def _jobs(recipe: Recipe, models: Sequence[Checkpoint], base: Checkpoint | None) -> list[TensorJob]:
    everyone = [*models] if base is None else [base, *models]
    listed = [(m.label, gates.canonical_tensors(m)) for m in everyone]
    gates.check_names(listed)
    names = sorted(listed[0][1])
    layers = 1 + max((layer for n in names if (layer := layer_of(n)) is not None), default=0)
    jobs = []
    for name in names:
        gates.check_tensor(name, [(label, tensors[name]) for label, tensors in listed])
        origins = [Origin(m, m.tensors[name]) for m in models]
        own_base = Origin(base, base.tensors[name]) if base is not None else None
        jobs.append(_job(recipe, name, origins, own_base, layers))
    return jobs


def _job(
    recipe: Recipe, name: str, origins: list[Origin], base: Origin | None, layers: int
) -> TensorJob:
    first = origins[0].info
    kinds = [o.info.kind for o in origins]
    if first.kind.kind == "exact":
        if len({kind.name for kind in kinds}) > 1:
            table = "; ".join(f"{o.checkpoint.label} -> {o.info.kind.name}" for o in origins)
            raise MergeError(f"tensor {name} has different integer types: {table}; save them alike")
        return TensorJob(first, origins, base, np.dtype(np.float32), None)
    out = promote([o.info.nominal for o in origins])
    if recipe.out_dtype is not None:
        out = STORAGE[DTYPE_WORDS[recipe.out_dtype]]
    sources = kinds + ([base.info.kind] if base is not None else [])
    work = working_type([*sources, out])
    per_model, shared = resolve(recipe, name, layers)
    shape = first.shape
    settings = StageSettings(
        name=name,
        elements=first.elements,
        row=shape[-1] if shape else 1,
        models=len(origins),
        work=work,
        seed=recipe.seed,
        per_model=per_model,
        shared=shared,
    )
    return TensorJob(TensorInfo(name, shape, out, out), origins, base, work, settings)


def build_kernel(recipe: Recipe, job: TensorJob) -> Kernel:
    """Return the kernel that computes one floating-point tensor."""
    settings = job.settings
    assert settings is not None
    sparsify, combine = recipe.stages
    family = recipe.spec.family
    if combine == "select":
        return _select_kernel(recipe, settings, job)
    if family == "staged":
        if sparsify == "none" and combine in ("sum", "mean"):
            return build_dense_sum(settings)
        return StagedKernel(sparsify, combine, settings)
    if recipe.spec.compute is not None:
        return FunctionKernel(recipe.method, recipe.spec.compute, settings, job.base is not None)
    if family == "linear":
        return build_linear(settings)
    if family == "nearswap":
        return NearswapKernel(settings)
    if family == "passthrough":
        return LinearKernel(Combination({0: 1.0}))
    relative = job.base is not None and recipe.method != "karcher" and recipe.spec.base != "unused"
    if settings.shared.get("granularity") == "row" and len(job.info.shape) > 1:
        return RowSlerpKernel(settings, relative)
    return GramKernel(recipe.method, settings, relative)


def _select_kernel(recipe: Recipe, settings: StageSettings, job: TensorJob) -> Kernel:
    granularity = str(settings.shared["granularity"])
    layer = layer_of(settings.name)
    key = settings.name
    if granularity == "layer" and layer is not None:
        key = f"layer {layer}"
    run = {"element": 1, "row": settings.row}.get(granularity, job.info.elements)
    draws = Draws(WordStream(settings.seed, "select", key), max(1, run))
    return SelectKernel(settings, recipe.stages[0], draws, resample_rounds(recipe))
