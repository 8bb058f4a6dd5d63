"""What must hold for any models: agreement, endpoints, closure, determinism, statistics."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixgym.trainer.merging import MERGE_METHODS
from mixgym.trainer.merging.methods.catalogue import METHODS, accepted_parameters

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
DENSE = {"density": 1.0, "epsilon": 0.0, "gamma": 0.0, "select_topk": 1.0}
MERGES = sorted(set(MERGE_METHODS) - {"lora_cat"})


def dense_case(method, models, base):
    """Entries, base and parameters under which a method keeps everything."""
    spec = METHODS[method]
    accepted = accepted_parameters(spec, spec.sparsify, spec.combine)
    models = models[: spec.models[1] or len(models)]
    if method in ("slerp",):
        models = models[:1]
    parameters = {key: value for key, value in DENSE.items() if key in accepted}
    if "weight" in accepted:
        models = [{"model": model, "weight": 1 / len(models)} for model in models]
    return models, base if spec.base != "unused" else None, parameters


def same_bits(one, two):
    return all(
        torch.equal(one[key].view(torch.uint8), two[key].view(torch.uint8))
        if one[key].ndim
        else torch.equal(one[key], two[key])
        for key in two
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", MERGES)
def test_identical_models_come_out_as_they_are(bench, make_tensors, method, dtype):
    model = make_tensors(1, dtype)
    base = make_tensors(0, dtype, 1000.0)  # far away: adding deltas back would round
    if method == "slerp":
        base = model
    paths = [bench.write(f"m{i}", model) for i in range(3)]
    entries, base_path, parameters = dense_case(method, paths, bench.write("base", base))
    if method == "nearswap":
        parameters["t"] = 1e6
    merged = bench.merge(method, entries, base_path, parameters=parameters)
    assert same_bits(merged, model), method


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1),
    weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=7),
    dtype=st.sampled_from(DTYPES),
)
def test_linear_never_drifts(bench, data, weights, dtype):
    merged = bench.one("linear", [data] * len(weights), weights=weights, dtype=dtype)
    assert torch.equal(merged, torch.tensor(data).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", MERGES)
def test_models_equal_to_the_base_give_the_base(bench, make_tensors, method, dtype):
    base = make_tensors(0, dtype)
    paths = [bench.write(f"m{i}", base) for i in range(3)]
    entries, base_path, _ = dense_case(method, paths, bench.write("base", base))
    merged = bench.merge(method, entries, base_path)
    for name in base:
        assert torch.equal(merged[name], base[name]), (method, name)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "select", "multislerp"])
def test_one_hot_weights_give_that_model(bench, family, method):
    base, paths, _, models = family
    entries = [{"model": p, "weight": float(i == 1)} for i, p in enumerate(paths)]
    merged = bench.merge(method, entries, base if method == "task_arithmetic" else None)
    for name in merged:
        if method == "multislerp":
            torch.testing.assert_close(merged[name], models[1][name])
        else:
            assert torch.equal(merged[name], models[1][name])


@pytest.mark.parametrize(("t", "index"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_endpoints(bench, family, t, index):
    _, paths, _, models = family
    merged = bench.merge("slerp", paths[:2], parameters={"t": t})
    assert same_bits(merged, models[index])


@pytest.mark.parametrize(
    ("sparse", "dense"),
    [
        ("dare_linear", "task_arithmetic"),
        ("della_linear", "task_arithmetic"),
        ("dare_ties", "ties"),
    ],
)
def test_density_one_is_the_dense_form(bench, family, sparse, dense):
    base, paths, _, _ = family
    normalize = {"normalize": False}
    one = bench.merge(sparse, paths, base, parameters=normalize)
    two = bench.merge(dense, paths, base, parameters=normalize)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=2**-8, atol=1e-6)


def test_one_model_selected_is_that_model(bench, family):
    _, paths, _, models = family
    assert same_bits(bench.merge("select", paths[:1]), models[0])


def test_task_arithmetic_with_shares_is_linear(bench, family):
    base, paths, _, _ = family
    entries = [{"model": p, "weight": 1 / 3} for p in paths]
    assert same_bits(bench.merge("task_arithmetic", entries, base), bench.merge("linear", paths))


@pytest.mark.parametrize("resample", [0, 1, "all"])
@pytest.mark.parametrize("granularity", ["element", "row", "tensor", "layer"])
def test_selection_is_closed(bench, family, resample, granularity):
    base, paths, _, models = family
    merged = bench.merge(
        "select", paths, base, parameters={"resample": resample, "granularity": granularity}
    )
    for name, values in merged.items():
        hits = torch.stack([values == model[name] for model in models])
        assert hits.any(dim=0).all()
        if resample == 0 and granularity == "row" and values.ndim > 1:
            assert hits.all(dim=-1).any(dim=0).all()
        if resample == 0 and granularity == "tensor":
            assert hits.reshape(3, -1).all(dim=1).any()


def test_granularity_layer_takes_a_layer_from_one_model(bench, make_tensors):
    tensors = {f"model.layers.0.{part}.weight": torch.zeros(3, 3) for part in "abcdefgh"}
    models = [{name: x + k for name, x in tensors.items()} for k in range(4)]
    paths = [bench.write(f"m{k}", model) for k, model in enumerate(models)]
    merged = bench.merge("select", paths, parameters={"granularity": "layer"})
    assert len({float(x[0, 0]) for x in merged.values()}) == 1


def test_exhaustive_resampling_leaves_only_common_zeros(bench, family):
    base_path, paths, base, models = family
    parameters = {"resample": "all"}
    merged, report = bench.run("select", paths, base_path, parameters=parameters)
    plain = bench.merge("select", paths)
    assert same_bits(bench.merge("select", paths, base_path), merged)  # all is the default
    for name, values in merged.items():
        zero = torch.stack([model[name] == base[name] for model in models])
        assert torch.equal(values == base[name], zero.all(dim=0))
        untouched = ~zero.any(dim=0)
        assert torch.equal(values[untouched], plain[name][untouched])
    assert report.zero_share is not None
    assert all(0 < share < 0.2 for share in report.zero_share)
    assert sum(report.selected_share) == pytest.approx(1.0)


def test_many_rounds_are_exhaustive(bench, family):
    base_path, paths, base, models = family
    merged = bench.merge("select", paths, base_path, parameters={"resample": 2})
    for name, values in merged.items():
        zero = torch.stack([model[name] == base[name] for model in models]).all(dim=0)
        assert torch.equal(values == base[name], zero)


# determinism

VARIED = ["linear", "select", "ties", "dare_ties", "della", "breadcrumbs", "sce", "karcher"]


def digest(folder):
    whole = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        whole.update(file.read_bytes())
    return whole.hexdigest()


@pytest.mark.parametrize("method", [*VARIED, "model_stock", "dare_linear", "multislerp"])
def test_bytes_do_not_depend_on_chunks_shards_or_threads(bench, make_tensors, method):
    spec = METHODS[method]
    models = [make_tensors(seed) for seed in (0, 1, 2, 3)]
    big = {"model.layers.0.mlp.up_proj.weight": torch.randn(170, 100).to(torch.bfloat16)}
    models = [{**m, **{k: v * (i + 1) for k, v in big.items()}} for i, m in enumerate(models)]
    one = [bench.write(f"single{i}", m) for i, m in enumerate(models)]
    many = []
    for i, m in enumerate(models):
        backwards = dict(reversed(m.items()))
        many.append(bench.write(f"renamed-{9 - i}", backwards, shards=3, as_bin=i == 2))
    accepted = accepted_parameters(spec, spec.sparsify, spec.combine)
    parameters = {"density": 0.5, "rescale": "l1", "resample": "all", "select_topk": 0.5}
    parameters = {k: v for k, v in parameters.items() if k in accepted}
    parameters |= {"gamma": 0.05} if "gamma" in accepted else {}
    outs = []
    for paths, chunk, threads in (
        (one, 1 << 18, 1),
        (many, 1 << 12, 1),
        (one, 1 << 12, 2),
        (many, 5000, 2),
    ):
        base = paths[0] if spec.base != "unused" else None
        recipe = {"parameters": parameters, "chunk_elements": chunk, "threads": threads}
        outs.append(digest(bench.run(method, paths[1:], base, **recipe)[1].out))
    assert len(set(outs)) == 1


def test_output_shards_hold_the_same_tensors(bench, family):
    _, paths, _, _ = family
    one = bench.merge("select", paths)
    many, report = bench.run("select", paths, max_shard_size="5KB")
    assert len(report.files) > 1
    assert same_bits(one, many)
    index = json.loads((Path(report.out) / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.bytes_written
    assert set(index["weight_map"]) == set(one)


def test_an_unrelated_tensor_changes_nothing_else(bench, family, make_tensors):
    _, paths, _, models = family
    extended = [
        bench.write(f"more{i}", {"a.first": torch.ones(7), **m, "z.last": torch.ones(3, 3)})
        for i, m in enumerate(models)
    ]
    one, two = bench.merge("select", paths), bench.merge("select", extended)
    assert same_bits({k: two[k] for k in one}, one)


def test_seeds_differ(bench, family):
    _, paths, _, _ = family
    assert not same_bits(bench.merge("select", paths), bench.merge("select", paths, seed=1))


def test_a_tied_head_changes_nothing(bench, make_tensors):
    config = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    models = [make_tensors(seed) for seed in (1, 2)]
    without = [bench.write(f"a{i}", m, config=config) for i, m in enumerate(models)]
    with_head = [
        bench.write(
            f"b{i}", {**m, "lm_head.weight": m["model.embed_tokens.weight"].clone()}, config=config
        )
        for i, m in enumerate(models)
    ]
    one = bench.merge("select", without)
    assert same_bits(bench.merge("select", with_head), one)
    assert same_bits(bench.merge("select", [without[0], with_head[1]]), one)


def test_picks_are_golden(bench):
    merged = bench.one("select", [torch.full((1000,), float(k)) for k in range(3)])
    picks = bytes(merged.to(torch.uint8).tolist())
    assert (
        hashlib.sha256(picks).hexdigest()
        == "c4be8bd7419c85298f9563aa8f22e0e5c20e39fe021a5fd2d71a4fc0f86a9dab"
    )


# statistics, with fixed seeds

N = 1_000_000


def planes(count):
    return [torch.full((N,), float(k + 1)) for k in range(count)]


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.7, 0.2, 0.1]])
def test_shares_follow_the_probabilities(bench, shares):
    merged = bench.one("select", planes(len(shares)), weights=shares)
    counts = np.bincount(merged.long().numpy() - 1, minlength=len(shares))
    chi2 = 0.0
    for count, share in zip(counts, shares, strict=True):
        assert abs(count / N - share) <= 4 * math.sqrt(share * (1 - share) / N)
        chi2 += (count - N * share) ** 2 / (N * share)
    assert chi2 < 33  # tail below 1e-6 for up to 3 degrees of freedom


def test_picks_are_uncorrelated(bench):
    models = [
        bench.write(f"m{k}", {"w": torch.full((N,), float(k)), "v": torch.full((N,), float(k))})
        for k in range(4)
    ]
    one = bench.merge("select", models)
    two = bench.merge("select", models, seed=1)
    sigma = math.sqrt(0.25 * 0.75 / N)
    for a, b in (
        (one["w"][1:], one["w"][:-1]),
        (one["w"], one["v"]),
        (one["w"], two["w"]),
    ):
        assert abs(float((a == b).double().mean()) - 0.25) <= 4 * sigma


def test_selection_keeps_the_length_of_the_deltas(bench):
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(N, generator=generator) for _ in range(3)]
    merged = bench.one("select", deltas).double()
    squares = torch.stack(deltas).double() ** 2
    mean = float(squares.mean(dim=0).sum())
    sigma = math.sqrt(float(((squares**2).mean(dim=0) - squares.mean(dim=0) ** 2).sum()))
    assert abs(float((merged**2).sum()) - mean) <= 4 * sigma


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_length_after_exhaustive_resampling(bench, sparsity):
    n, k = 400_000, 3
    generator = torch.Generator().manual_seed(0)
    deltas = [
        torch.randn(n, generator=generator) * (torch.rand(n, generator=generator) > sparsity)
        for _ in range(k)
    ]
    merged = bench.one("select", deltas, torch.zeros(n), parameters={"resample": "all"}).double()
    plain = bench.one("select", deltas).double()
    ratio = float((merged**2).sum() / (plain**2).sum())
    assert ratio == pytest.approx((1 - sparsity**k) / (1 - sparsity), rel=0.02)


def test_exhaustive_draws_are_even_among_survivors(bench):
    n = 300_000
    values = [torch.full((n,), float(k)) for k in (0, 1, 2, 3)]
    merged = bench.one(
        "select",
        values,
        torch.zeros(n),
        weights=[0.4, 0.3, 0.2, 0.1],
        parameters={"resample": "all"},
    )
    for k, share in ((1, 0.5), (2, 1 / 3), (3, 1 / 6)):
        got = float((merged == k).double().mean())
        assert abs(got - share) <= 4 * math.sqrt(share * (1 - share) / n)


def test_selection_is_unbiased(bench):
    """Over 200 streams: 10 seeds of 20 names."""
    generator = torch.Generator().manual_seed(0)
    models = [torch.randn(500, generator=generator) for _ in range(3)]
    paths = [
        bench.write(f"m{i}", {f"w{name}": m.clone() for name in range(20)})
        for i, m in enumerate(models)
    ]
    total = torch.zeros(500).double()
    for seed in range(10):
        total += sum(bench.merge("select", paths, seed=seed).values()).double()
    stacked = torch.stack(models).double()
    sigma = stacked.std(dim=0, unbiased=False) / math.sqrt(200)
    off = ((total / 200 - stacked.mean(dim=0)).abs() / sigma).max()
    assert float(off) <= 4.5
