"""The merge methods by name: what each does, needs and accepts.

Plain data that imports nothing heavy, so that ``mixgym list merge-methods`` answers at once. The
arithmetic stands in the kernel modules.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixgym.envs.errors import ConfigError
from mixgym.envs.plugins.outside import check_signature, summary_of
from mixgym.envs.plugins.registry import Registry

Family = Literal[
    "linear", "geometric", "staged", "select", "nearswap", "passthrough", "adapters", "function"
]

SPARSIFIERS: dict[str, str] = {
    "none": "keep every delta",
    "magnitude": "keep the density * n largest deltas of a tensor (TIES)",
    "bernoulli": "keep each delta with probability density, at random (DARE)",
    "magprune": "keep at random, large deltas of a row with a higher probability (DELLA)",
    "outliers": "drop the share gamma of largest deltas, then the smallest (breadcrumbs)",
    "variance": "keep the select_topk share of elements that differ most between models (SCE)",
}

COMBINERS: dict[str, str] = {
    "sum": "weighted sum of the deltas",
    "mean": "weighted mean of the deltas",
    "consensus": "weighted sum of those deltas that have the sign of the majority",
    "energy": "consensus, weighted by each model's mean squared delta",
    "select": "each element whole from one model, chosen at random",
}

PARAMETERS: dict[str, str] = {
    "weight": "share of a model; for select, its probability",
    "lambda": "factor of the merged delta",
    "density": "share of deltas that is kept, in (0, 1]",
    "epsilon": "half-width of the keep probabilities around density (magprune)",
    "gamma": "share of the largest deltas that is dropped (outliers)",
    "select_topk": "share of the elements that is kept (variance)",
    "t": "position between two models; for nearswap, the distance within which they swap",
    "normalize": "divide by the sum of the weights that took part",
    "rescale": "make up for dropped deltas: paper (1 / keep probability), l1 or none",
    "resample": "further draws where the chosen value equals the base: 0, 1, ..., all, or "
    "auto (all if a base is given, else 0)",
    "granularity": "what one draw decides: element, row (along the last axis), tensor or layer",
    "max_iter": "iterations at most (karcher)",
    "tol": "angle in radians at which to stop (karcher)",
    "rank": "rank to cut the merged adapter to; 0 keeps it whole (lora_cat)",
}

PER_TENSOR = ("weight", "lambda", "density", "epsilon", "gamma", "select_topk", "t")
"""Parameters that may differ by layer and by regular expression of the tensor's name."""

PER_MODEL = ("weight", "density", "epsilon", "gamma")
"""Parameters that may differ by model."""

_STAGE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "magnitude": ("density",),
    "bernoulli": ("density", "rescale"),
    "magprune": ("density", "epsilon", "rescale"),
    "outliers": ("density", "gamma"),
    "variance": ("select_topk",),
    "sum": ("weight", "lambda", "normalize"),
    "mean": ("weight", "lambda"),
    "consensus": ("weight", "lambda", "normalize"),
    "energy": ("lambda",),
    "select": ("weight", "resample", "granularity"),
}

_DEFAULTS: dict[str, float | int | str | bool] = {
    "weight": 1.0,
    "lambda": 1.0,
    "density": 1.0,
    "epsilon": 0.15,
    "gamma": 0.01,
    "select_topk": 1.0,
    "t": 0.5,
    "normalize": False,
    "rescale": "paper",
    "resample": "auto",
    "granularity": "element",
    "max_iter": 100,
    "tol": 1e-9,
    "rank": 0,
}


@dataclass(frozen=True)
class MethodSpec:
    """One merge method.

    Attributes:
        name: The word of ``--method``.
        summary: One line for the list of methods.
        family: Which kernel computes it.
        base: Whether a base model must, may or may not be given.
        models: Least and greatest number of models; None is no limit.
        sparsify: Default first stage, for the families that have stages.
        combine: Default second stage.
        accepts: Parameters beyond those of the stages.
        defaults: Where this method departs from the general defaults.
        compute: Of family ``function``, the plug-ins: ``(values, base, settings) -> array[n]`` for
            n elements of a tensor, each by itself; see
            :class:`~mixgym.trainer.merging.methods.function_kernel.FunctionKernel`.
    """

    name: str
    summary: str
    family: Family
    base: Literal["required", "optional", "unused"]
    models: tuple[int, int | None] = (1, None)
    sparsify: str = "none"
    combine: str = "sum"
    accepts: tuple[str, ...] = ()
    defaults: dict[str, float | int | str | bool] = field(default_factory=dict)
    compute: Callable[..., Any] | None = None

    @property
    def is_staged(self) -> bool:
        """Whether ``sparsify`` and ``combine`` of a recipe apply to this method."""
        return self.family in ("staged", "select")


def _staged(
    name: str, summary: str, sparsify: str, combine: str, **defaults: float | str | bool
) -> MethodSpec:
    return MethodSpec(
        name, summary, "staged", "required", (1, None), sparsify, combine, (), defaults
    )


_SPECS = (
    MethodSpec(
        "select",
        "each element whole from one model, drawn with its probability",
        "select",
        "optional",
        combine="select",
    ),
    MethodSpec(
        "linear",
        "weighted average of the models",
        "linear",
        "unused",
        accepts=("weight", "normalize"),
        defaults={"normalize": True},
    ),
    _staged("task_arithmetic", "base plus the weighted sum of deltas", "none", "sum"),
    _staged(
        "ties",
        "trim small deltas, elect a sign per element, average those that agree",
        "magnitude",
        "consensus",
        normalize=True,
    ),
    _staged("dare_linear", "drop deltas at random, rescale, add", "bernoulli", "sum"),
    _staged(
        "dare_ties", "drop deltas at random, rescale, elect a sign, add", "bernoulli", "consensus"
    ),
    _staged(
        "della",
        "drop small deltas more often, rescale, elect a sign, add",
        "magprune",
        "consensus",
    ),
    _staged("della_linear", "drop small deltas more often, rescale, add", "magprune", "sum"),
    _staged("breadcrumbs", "drop the largest and the smallest deltas, add", "outliers", "sum"),
    _staged(
        "breadcrumbs_ties",
        "drop the largest and the smallest deltas, elect a sign, add",
        "outliers",
        "consensus",
    ),
    _staged(
        "sce",
        "keep what differs most between models, weight by squared delta, elect a sign",
        "variance",
        "energy",
    ),
    MethodSpec(
        "slerp",
        "along the arc between two models, tensor by tensor",
        "geometric",
        "optional",
        (2, 2),
        accepts=("t",),
    ),
    MethodSpec(
        "nuslerp",
        "along the arc between two models or two deltas, by their weights",
        "geometric",
        "optional",
        (2, 2),
        accepts=("weight", "granularity"),
        defaults={"granularity": "tensor"},
    ),
    MethodSpec(
        "multislerp",
        "mean direction of models or of deltas, at their mean length",
        "geometric",
        "optional",
        (2, None),
        accepts=("weight",),
    ),
    MethodSpec(
        "karcher",
        "weighted mean on the sphere, iterated to its fixed point",
        "geometric",
        "unused",
        (2, None),
        accepts=("weight", "max_iter", "tol"),
    ),
    MethodSpec(
        "model_stock",
        "between base and average, by the angle between the deltas",
        "geometric",
        "required",
        (2, None),
    ),
    MethodSpec(
        "nearswap",
        "swap in the second model's values where they are near the base's",
        "nearswap",
        "required",
        (1, 1),
        accepts=("t",),
        defaults={"t": 0.001},
    ),
    MethodSpec("passthrough", "copy one model", "passthrough", "unused", (1, 1)),
    MethodSpec(
        "lora_cat",
        "weighted average of LoRA adapters as one adapter, exact: their ranks add up",
        "adapters",
        "unused",
        accepts=("weight", "normalize", "rank"),
        defaults={"normalize": True},
    ),
)


def as_method(where: str, thing: Any, **declared: Any) -> MethodSpec:
    """Return the method that a plug-in is: a :class:`MethodSpec`, or a function as its ``compute``.

    Raises:
        ConfigError: For anything else, beginning with ``where``.
    """
    if isinstance(thing, MethodSpec):
        spec = replace(thing, **declared)
    else:
        name = getattr(thing, "__name__", "plug-in")
        own = {"name": name, "summary": summary_of(thing), "base": "optional", "compute": thing}
        spec = MethodSpec(**{"family": "function", **own, **declared})
    if spec.family != "function" or spec.compute is None:
        raise ConfigError(
            f"{where}: family is {spec.family!r}; a plug-in has family='function' and compute=..."
        )
    unknown = [key for key in (*spec.accepts, *spec.defaults) if key not in PARAMETERS]
    if unknown:
        raise ConfigError(
            f"{where}: accepts {', '.join(unknown)}; parameters are {', '.join(PARAMETERS)}"
        )
    check_signature(spec.compute, ("values", "base", "settings"), where)
    return spec


METHODS: Registry[MethodSpec] = Registry(
    "merge method", "method", "mixgym.merge_methods", as_method, {s.name: s for s in _SPECS}
)
MERGE_METHODS: dict[str, str] = {spec.name: spec.summary for spec in _SPECS}


def accepted_parameters(spec: MethodSpec, sparsify: str, combine: str) -> set[str]:
    """Return the names of the parameters that a method with these stages understands."""
    names = set(spec.accepts)
    if spec.is_staged:
        names.update(_STAGE_PARAMETERS[sparsify], _STAGE_PARAMETERS[combine])
    return names


def default_of(spec: MethodSpec, parameter: str) -> float | int | str | bool:
    """Return the default of a parameter under a method."""
    return spec.defaults.get(parameter, _DEFAULTS[parameter])


def options_of_method(name: str) -> list[tuple[str, float | int | str | bool, str]]:
    """Name, default and meaning of every parameter of a method with its own stages."""
    spec = METHODS.find(name)
    names = sorted(accepted_parameters(spec, spec.sparsify, spec.combine))
    return [(key, default_of(spec, key), PARAMETERS[key]) for key in names]
