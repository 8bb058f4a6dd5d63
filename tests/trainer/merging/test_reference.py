"""Every method against the same mathematics written down whole-tensor, in float64."""

import numpy as np
import pytest
import torch

from mixgym.trainer.merging import MERGE_METHODS
from mixgym.trainer.merging.methods.random_words import WordStream
from mixgym.trainer.merging.methods.sparsify import keep_probabilities

WEIGHTS = [0.5, 0.3, 0.2]


def topk(delta, density):
    kept = max(1, int(density * delta.size))
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")[:kept]
    out = np.zeros(delta.size)
    out[order] = delta.ravel()[order]
    return out.reshape(delta.shape)


def crumbs(delta, density, gamma):
    n = delta.size
    kept, top = int(density * n), int(gamma * n)
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")[top : top + kept]
    out = np.zeros(n)
    out[order] = delta.ravel()[order]
    return out.reshape(delta.shape)


def dare(delta, density, name, k, seed=0):
    words = WordStream(seed, "bernoulli", name, k).words(0, delta.size).reshape(delta.shape)
    return np.where(words < density * 2**32, delta, 0.0) / density


def prune(delta, density, epsilon, name, k, seed=0):
    rows = delta.reshape(-1, delta.shape[-1] if delta.ndim else 1)
    chance = keep_probabilities(rows, density, epsilon).reshape(delta.shape)
    words = WordStream(seed, "magprune", name, k).words(0, delta.size).reshape(delta.shape)
    return np.where(words < chance * 2**32, delta, 0.0) / chance


def elect(deltas, weights, normalize):
    pulls = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = np.where(sum(pulls) >= 0, 1.0, -1.0)
    agrees = [p * sign > 0 for p in pulls]
    total = sum(p * a for p, a in zip(pulls, agrees, strict=True))
    if not normalize:
        return total
    share = sum(w * a for w, a in zip(weights, agrees, strict=True))
    return total / np.where(share == 0, 1.0, share)


def arc(a, b, t):
    c = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    angle = np.arccos(np.clip(c, -1, 1))
    if abs(c) > 0.9995:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def sphere(vectors, weights, steps):
    weights = np.array(weights) / sum(weights)
    norms = [np.sqrt((v * v).sum()) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.sqrt((mean * mean).sum())
    for _ in range(steps):
        step = 0
        for w, u in zip(weights, units, strict=True):
            c = np.clip((u * mean).sum(), -1, 1)
            flat = u - c * mean
            length = np.sqrt((flat * flat).sum())
            step = step + (w * np.arccos(c) * flat / length if length > 1e-12 else 0)
        angle = np.sqrt((np.asarray(step) ** 2).sum())
        if angle < 1e-14:
            break
        mean = np.cos(angle) * mean + np.sin(angle) * step / angle
    return mean * sum(w * n for w, n in zip(weights, norms, strict=True))


def stock(base, deltas):
    pairs = [
        (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        for i, a in enumerate(deltas)
        for b in deltas[:i]
    ]
    k, c = len(deltas), max(0.0, np.mean(pairs))
    t = k * c / (1 + (k - 1) * c)
    return base + t * sum(deltas) / k


def sce(deltas, share):
    stacked = np.stack(deltas)
    spread = stacked.astype(np.float32).var(axis=0, dtype=np.float32)
    kept = int(share * np.count_nonzero(spread))
    mask = np.zeros(spread.size)
    mask[np.argsort(-spread.ravel(), kind="stable")[:kept]] = 1
    stacked = stacked * mask.reshape(spread.shape)
    energy = (stacked**2).reshape(len(deltas), -1).sum(axis=1)
    energy = energy / max(energy.sum(), 1e-300)
    sign = np.where(stacked.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = stacked * sign > 0
    shaped = energy.reshape(-1, *[1] * spread.ndim)
    share_sum = (shaped * agrees).sum(axis=0)
    return (stacked * shaped * agrees).sum(axis=0) / np.where(share_sum == 0, 1, share_sum)


def weighted(deltas, weights=None):
    return sum(w * d for w, d in zip(weights or WEIGHTS, deltas, strict=True))


def with_thinned(thin, combine):
    """A formula: thin each delta, combine, scale by lambda and add to the base."""

    def formula(base, models, name):
        thinned = [thin(m - base, name, k) for k, m in enumerate(models)]
        return base + 0.7 * combine(thinned)

    return formula


def by_size(delta, name, k):
    return topk(delta, 0.4)


def by_chance(delta, name, k):
    return dare(delta, 0.4, name, k)


def by_rank(delta, name, k):
    return prune(delta, 0.4, 0.2, name, k)


def by_ends(delta, name, k):
    return crumbs(delta, 0.4, 0.1)


def elect_sum(deltas):
    return elect(deltas, WEIGHTS, False)


def swap(base, models, name):
    distance = np.maximum(np.abs(models[0] - base), 1e-300)
    share = np.clip(0.3 / distance, 0, 1)
    return share * models[0] + (1 - share) * base


FORMULAS = {
    "linear": lambda base, models, name: weighted(models) / sum(WEIGHTS),
    "task_arithmetic": with_thinned(lambda delta, name, k: delta, weighted),
    "ties": with_thinned(by_size, lambda deltas: elect(deltas, WEIGHTS, True)),
    "dare_linear": with_thinned(by_chance, weighted),
    "dare_ties": with_thinned(by_chance, elect_sum),
    "della_linear": with_thinned(by_rank, weighted),
    "della": with_thinned(by_rank, elect_sum),
    "breadcrumbs": with_thinned(by_ends, weighted),
    "breadcrumbs_ties": with_thinned(by_ends, elect_sum),
    "sce": with_thinned(lambda delta, name, k: delta, lambda deltas: sce(deltas, 0.6)),
    "slerp": lambda base, models, name: arc(base, models[0], 0.3),
    "nuslerp": lambda base, models, name: base + arc(models[0] - base, models[1] - base, 0.3 / 0.8),
    "multislerp": lambda base, models, name: base + sphere([m - base for m in models], WEIGHTS, 0),
    "karcher": lambda base, models, name: sphere(models, WEIGHTS, 300),
    "model_stock": lambda base, models, name: stock(base, [m - base for m in models]),
    "nearswap": swap,
    "passthrough": lambda base, models, name: models[0],
}


PARAMETERS = {
    "lambda": 0.7,
    "density": 0.4,
    "epsilon": 0.2,
    "gamma": 0.1,
    "select_topk": 0.6,
    "tol": 1e-14,
    "max_iter": 300,
}


def test_every_method_has_a_formula():
    assert set(FORMULAS) == set(MERGE_METHODS) - {"select", "lora_cat"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", FORMULAS)
def test_method_equals_the_formula(bench, make_tensors, method, dtype):
    from mixgym.trainer.merging.methods.catalogue import METHODS, accepted_parameters

    spec = METHODS[method]
    base = make_tensors(0, dtype)
    models = [make_tensors(seed, dtype) for seed in (1, 2, 3)]
    count = spec.models[1] or 3
    if method == "slerp":
        count = 1
    base_path = bench.write("base", base)
    paths = [bench.write(f"m{i}", m) for i, m in enumerate(models[:count])]
    accepted = accepted_parameters(spec, spec.sparsify, spec.combine)
    parameters = {k: v for k, v in PARAMETERS.items() if k in accepted}
    if "t" in accepted:
        parameters["t"] = 0.3
    entries = paths
    if "weight" in accepted:
        entries = [{"model": p, "weight": w} for p, w in zip(paths, WEIGHTS, strict=False)]
    uses_base = spec.base != "unused"
    merged = bench.merge(method, entries, base_path if uses_base else None, parameters=parameters)
    for name, got in merged.items():
        arrays = [m[name].double().numpy() for m in models[:count]]
        want = FORMULAS[method](base[name].double().numpy(), arrays, name)
        tolerance = 1e-11 if dtype == torch.float64 else 3e-5
        np.testing.assert_allclose(got.double().numpy(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_bf16_output_is_the_rounded_reference(bench, family, method):
    base_path, paths, base, models = family
    parameters = {"density": 0.5} if method == "ties" else {}
    merged = bench.merge(
        method, paths, base_path if method == "ties" else None, parameters=parameters
    )
    for name, got in merged.items():
        b = base[name].double().numpy()
        arrays = [m[name].double().numpy() for m in models]
        want = sum(arrays) / 3
        if method == "ties":
            want = b + elect([topk(m - b, 0.5) for m in arrays], [1.0] * 3, True)
        rounded = torch.from_numpy(np.asarray(want)).float().to(torch.bfloat16)
        assert torch.equal(got, rounded), name


def test_row_wise_nuslerp(bench, make_tensors):
    models = [make_tensors(seed, torch.float64) for seed in (1, 2)]
    paths = [bench.write(f"m{i}", m) for i, m in enumerate(models)]
    merged = bench.merge("nuslerp", paths, parameters={"granularity": "row"})
    name = "model.layers.0.mlp.up_proj.weight"
    one, two = (m[name].numpy() for m in models)
    want = np.stack([arc(a, b, 0.5) for a, b in zip(one, two, strict=True)])
    np.testing.assert_allclose(merged[name].numpy(), want, rtol=1e-12)


def test_l1_rescaling_restores_the_sum_of_magnitudes(bench):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(50_000, generator=generator).double()
    for method in ("dare_linear", "della_linear"):
        merged = bench.one(
            method,
            [delta],
            torch.zeros(50_000),
            torch.float64,
            parameters={"density": 0.3, "rescale": "l1"},
        )
        assert float(merged.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-12)
        plain = bench.one(
            method,
            [delta],
            torch.zeros(50_000),
            torch.float64,
            parameters={"density": 0.3, "rescale": "none"},
        )
        kept = plain != 0
        assert torch.equal(plain[kept], delta[kept])
