"""Probes that look at gradients.

A source's gradient is that of the token-mean loss over its probe rows; a target's, that of the
token-mean loss over its rows of the reward split. Gradients are returned, and never stored in
``.grad``. What compares sources with each other holds K gradients at once; what compares with the
targets holds two.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.learners.batching import Batch, RowBatch
from mixgym.envs.learners.probes.probed import Probed
from mixgym.envs.learners.probes.row_norms import last_block, row_norms

if TYPE_CHECKING:
    import torch

    Gradient = list[torch.Tensor]

_SKETCH = 8192  # entries of a random projection
_CHUNK = 1 << 20  # entries that are projected at a time


def gradient_norm(probed: Probed) -> FloatArray:
    """Norm of the gradient of the mean loss over the source's probe rows (HBO, eq. 7)."""
    parameters = probed.parameters()
    return _each(probed, lambda rows: _norm(_gradient(probed, rows, parameters)))


def gradient_norm_last(probed: Probed) -> FloatArray:
    """The same of the last block's parameters: the pass back is a short one."""
    parameters = [p for p in last_block(probed.trained.module).parameters() if p.requires_grad]
    with _frozen(probed.trained.module, parameters):
        return _each(probed, lambda rows: _norm(_gradient(probed, rows, parameters)))


def gradient_norm_examples(probed: Probed) -> FloatArray:
    """Mean over the probe rows of the norm of each row's own gradient, row by row."""
    parameters = probed.parameters()

    def mean(batches: list[RowBatch]) -> float:
        return float(np.mean([_norm(g) for g in _row_gradients(probed, batches, parameters)]))

    return _each(probed, mean)


def gradient_norm_examples_last(probed: Probed) -> FloatArray:
    """The same of the last block's matrices, all rows in one short pass."""
    parameters = [p for p in last_block(probed.trained.module).parameters() if p.requires_grad]
    with _frozen(probed.trained.module, parameters):
        return _each(probed, lambda rows: float(row_norms(probed, rows).mean()))


def gradient_alignment(probed: Probed) -> FloatArray:
    """<g_k, g_target> / |g_target|, g_target the target-weighted mean on the reward split."""
    parameters = probed.parameters()
    target = _target_gradient(probed, parameters)
    length = max(_norm(target), 1e-30)
    return _each(probed, lambda rows: _dot(_gradient(probed, rows, parameters), target) / length)


def gradient_cosine(probed: Probed) -> FloatArray:
    """Mean over targets of cos(g_target, g_k), by target weight (MultiDDS)."""
    parameters = probed.parameters()
    targets = [source.target for source in probed.sources]
    used = [k for k, weight in enumerate(targets) if weight > 0 and probed.reward_batches(k)]
    batches = [probed.reward_batches(k) for k in used]
    directions = [_unit(_token_gradient(probed, rows, parameters)) for rows in batches]
    weights = np.array([targets[k] for k in used])

    def mean(batches: list[RowBatch]) -> float:
        own = _unit(_gradient(probed, batches, parameters))
        return float(np.average([_dot(own, other) for other in directions], weights=weights))

    return _each(probed, mean)


def gradient_influence(probed: Probed) -> FloatArray:
    """<g_k, sum over j != k of g_j> (DoGE, AC-ODM)."""
    import torch

    parameters = probed.parameters()
    rows = probed.by_source()
    own = {k: _gradient(probed, part, parameters) for k, part in enumerate(rows) if part}
    total = [torch.stack(parts).sum(0) for parts in zip(*own.values(), strict=True)]
    values = np.full(len(rows), np.nan)
    for k, gradient in own.items():
        # <g_k, sum_(j != k) g_j> = <g_k, sum_j g_j> - <g_k, g_k>
        values[k] = _dot(gradient, total) - _dot(gradient, gradient)
    return values


def projected_alignment(probed: Probed) -> FloatArray:
    """Cosine of random projections: Adam's next step on the source with g_target (LESS).

    The projection adds up entries of random sign in random places: it keeps inner products in
    expectation, at the cost of one pass over the gradient. Between sources only projections are
    kept.
    """
    parameters = probed.parameters()
    target = _sketch(_target_gradient(probed, parameters), probed.seed)

    def cosine(batches: list[RowBatch]) -> float:
        gradient = _gradient(probed, batches, parameters)
        step = adam_direction(gradient, parameters, probed.optimisation.optimizer)
        own = _sketch(step, probed.seed)
        return float((own @ target) / (own.norm() * target.norm()).clamp_min(1e-30))

    return _each(probed, cosine)


PROBES: dict[str, Callable[[Probed], FloatArray]] = {
    "gradient_norm": gradient_norm,
    "gradient_norm_last": gradient_norm_last,
    "gradient_norm_examples": gradient_norm_examples,
    "gradient_norm_examples_last": gradient_norm_examples_last,
    "gradient_alignment": gradient_alignment,
    "gradient_cosine": gradient_cosine,
    "gradient_influence": gradient_influence,
    "projected_alignment": projected_alignment,
}
"""float64[K] by name; NaN for sources without probe rows."""


def _target_gradient(probed: Probed, parameters: "list[torch.nn.Parameter]") -> "Gradient":
    """Target-weighted mean over sources of their gradients on the reward split."""
    targets = np.array([source.target for source in probed.sources])
    tokens = np.array([int(s.splits["reward"].supervised.sum()) for s in probed.sources])
    used = np.where(tokens > 0, targets, 0.0)
    share = used / used.sum() / np.maximum(tokens, 1)
    return _sum(
        _weighted(probed, batch, np.full(len(batch.cells), share[k]), parameters)
        for k in np.flatnonzero(used).tolist()
        for batch in probed.reward_batches(k)
    )


def adam_direction(
    gradient: "Gradient",
    parameters: "list[torch.nn.Parameter]",
    optimizer: "torch.optim.Optimizer",
) -> "Gradient":
    """What Adam's next step would follow for this gradient: m / (sqrt(v) + eps), both corrected."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for g, parameter in zip(gradient, parameters, strict=True):
        group, state = groups[id(parameter)], optimizer.state.get(parameter) or {}
        first, second = group["betas"]
        # m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2, as the step would make them; the
        # direction is m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps), without rate and decay
        steps = int(state.get("step", 0)) + 1
        mean = (1 - first) * g + (first * state["exp_avg"] if state else 0.0)
        square = (1 - second) * g * g + (second * state["exp_avg_sq"] if state else 0.0)
        root = (square / (1 - second**steps)).sqrt()
        found.append(mean / (1 - first**steps) / (root + group["eps"]))
    return found


# --- pieces -----------------------------------------------------------------------------------


def _each(probed: Probed, value: Callable[[list[RowBatch]], float]) -> FloatArray:
    rows = probed.by_source()
    return np.array([value(part) if part else np.nan for part in rows])


def _gradient(
    probed: Probed, batches: list[RowBatch], parameters: "Sequence[torch.Tensor]"
) -> "Gradient":
    return _token_gradient(probed, [one.batch for one in batches], parameters)


def _token_gradient(
    probed: Probed, batches: list[Batch], parameters: "Sequence[torch.Tensor]"
) -> "Gradient":
    """Gradient of the mean loss over the batches' supervised tokens."""
    count = sum(len(batch.cells) for batch in batches)
    return _sum(
        _weighted(probed, batch, np.full(len(batch.cells), 1 / count), parameters)
        for batch in batches
    )


def _weighted(
    probed: Probed,
    batch: Batch,
    weights: FloatArray,
    parameters: "Sequence[torch.Tensor]",
) -> "Gradient":
    """Gradient of the sum of weight * token loss."""
    import torch

    losses = probed.token_losses(batch)
    scale = torch.from_numpy(weights).to(losses.device, losses.dtype)
    found = torch.autograd.grad((losses * scale).sum(), list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def _row_gradients(
    probed: Probed, batches: list[RowBatch], parameters: "Sequence[torch.Tensor]"
) -> "Iterator[Gradient]":
    """Each row's gradient of its own mean loss: a pass of its own, since packed rows share one."""
    for one in batches:
        for row in alone(one.batch):
            yield _token_gradient(probed, [row], parameters)


def alone(batch: Batch) -> Iterator[Batch]:
    """The documents of a batch, each as a batch of its own."""
    edges = np.concatenate([[0], np.cumsum(batch.document_lengths)])
    predictors = batch.predictors.cpu().numpy()
    for start, end in pairwise(edges.tolist()):
        here = np.flatnonzero((predictors >= start) & (predictors < end))
        inside = slice(int(here[0]), int(here[-1]) + 1)
        yield Batch(
            batch.input_ids[:, start:end],
            batch.position_ids[:, start:end],
            (end - start,),
            batch.predictors[inside] - start,
            batch.labels[inside],
            batch.weights[inside],
            batch.cells[inside],
            np.zeros(len(here), np.int64),
        )


def _sum(gradients: "Iterator[Gradient]") -> "Gradient":
    total = next(gradients)
    for gradient in gradients:
        for mine, more in zip(total, gradient, strict=True):
            mine += more
    return total


def _norm(gradient: "Gradient") -> float:
    import torch

    return float(torch.linalg.vector_norm(torch.stack([g.double().norm() for g in gradient])))


def _dot(a: "Gradient", b: "Gradient") -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _unit(gradient: "Gradient") -> "Gradient":
    length = max(_norm(gradient), 1e-30)
    return [g / length for g in gradient]


def _sketch(gradient: "Gradient", seed: int) -> "torch.Tensor":
    """float64[_SKETCH], a random projection, the same for every call with the seed."""
    import torch

    # count sketch: s[h(i)] += e(i) g[i], places h and signs e = +-1 drawn by the seed; then
    # E <s(g), s(g')> = <g, g'>, for where i != j share a place their signs cancel in expectation
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(_SKETCH, dtype=torch.float64)
    for tensor in gradient:
        for part in tensor.detach().flatten().cpu().double().split(_CHUNK):
            place = torch.randint(_SKETCH, part.shape, generator=generator)
            sign = torch.randint(2, part.shape, generator=generator).double() * 2 - 1
            total.index_add_(0, place, part * sign)
    return total


class _frozen:  # noqa: N801 - a context manager
    """Inside the block only ``parameters`` require gradients: nothing is kept for the others."""

    def __init__(self, model: Any, parameters: "Sequence[torch.nn.Parameter]") -> None:
        kept = {id(p) for p in parameters}
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]

    def __enter__(self) -> None:
        for parameter in self._others:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self._others:
            parameter.requires_grad_(True)
