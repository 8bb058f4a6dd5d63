"""Recipes from Python, YAML, mergekit and the command line, and what the package imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mixgym.trainer.merging import MERGE_METHODS, MergeError, Recipe, merge_command
from mixgym.trainer.merging.methods.catalogue import (
    COMBINERS,
    METHODS,
    PARAMETERS,
    SPARSIFIERS,
    accepted_parameters,
    default_of,
)
from mixgym.trainer.merging.methods.combine import COMBINE
from mixgym.trainer.merging.methods.sparsify import SPARSIFY


def test_catalogue_and_kernels_agree():
    assert set(SPARSIFIERS) == set(SPARSIFY)
    assert set(COMBINERS) == {*COMBINE, "select"}
    for spec in METHODS.values():
        for key in accepted_parameters(spec, spec.sparsify, spec.combine):
            assert key in PARAMETERS
            default_of(spec, key)


def test_the_package_loads_no_torch():
    code = (
        "import sys; import mixgym.trainer.merging as m; "
        "m.Recipe(method='linear', models=['a'], out='b'); len(m.MERGE_METHODS); "
        "print([x for x in ('torch', 'transformers') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"method": "linaer", "models": ["a"]}, ["linaer", "did you mean linear"]),
        ({"method": "linear", "models": ["a"], "sede": 1}, ["sede", "did you mean seed"]),
        (
            {"method": "ties", "models": ["a"], "parameters": {"densty": 1}},
            ["densty", "did you mean density"],
        ),
        (
            {"method": "linear", "models": ["a"], "parameters": {"density": 1}},
            ["linear has no parameter 'density'", "weight"],
        ),
        ({"method": "linear", "models": []}, ["models"]),
        ({"method": "linear", "models": [{"model": "a", "wieght": 1}]}, ["models.0.wieght"]),
        ({"method": "linear", "models": ["a"], "sparsify": "magnitude"}, ["no stages"]),
        ({"method": "ties", "models": ["a"], "sparsify": "magnitud"}, ["did you mean magnitude"]),
        (
            {"method": "ties", "models": [{"model": "a", "parameters": {"lambda": 1}}]},
            ["models.0", "lambda", "under parameters"],
        ),
        (
            {"method": "linear", "models": ["a"], "parameters": {"weight": "much"}},
            ["parameters.weight", "'much'"],
        ),
        (
            {"method": "linear", "models": ["a"], "parameters": {"weight": {"(": 1}}},
            ["regular expression"],
        ),
        (
            {"method": "linear", "models": ["a"], "parameters": {"weight": [{"fliter": "a"}]}},
            ["filter and value"],
        ),
        ({"method": "linear", "models": ["a"], "parameters": {"normalize": [1]}}, ["one value"]),
        ({"method": "linear", "models": ["a"], "out_dtype": "int8"}, ["out_dtype"]),
        ({"method": "linear", "models": ["a"], "threads": 0}, ["threads"]),
    ],
)
def test_mistakes_are_named(data, words):
    with pytest.raises(MergeError) as caught:
        Recipe.parse(data)
    for word in words:
        assert word in str(caught.value)


def test_weights_by_pattern_and_layer(bench, make_tensors):
    one, two = make_tensors(1, torch.float32), make_tensors(2, torch.float32)
    paths = [bench.write("one", one), bench.write("two", two)]
    entries = [
        {"model": paths[0], "weight": {r"layers\.0\.": 1.0, "norm": [0.0, 1.0], ".*": 0.25}},
        {"model": paths[1], "weight": {r"layers\.0\.": 0.0, "norm": [1.0, 0.0], ".*": 0.75}},
    ]
    merged = bench.merge("linear", entries)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[name], one[name])
    name = "model.layers.1.norm.weight"
    assert torch.equal(merged[name], one[name])  # the last layer's end of the gradient
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], 0.25 * one[name] + 0.75 * two[name])


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_yaml_and_mergekit_yaml_give_the_same(bench, family):
    base, paths, _, _ = family
    ours = {
        "method": "ties",
        "base": base,
        "models": [{"model": p, "weight": 0.5, "density": 0.3} for p in paths],
        "out_dtype": "float32",
    }
    theirs = {
        "merge_method": "ties",
        "base_model": base,
        "models": [
            {"model": base},
            *({"model": p, "parameters": {"weight": 0.5, "density": 0.3}} for p in paths),
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "float32",
        "tokenizer_source": "base",
    }
    theirs.pop("tokenizer_source")
    outs = []
    for i, data in enumerate((ours, theirs)):
        file = bench.folder / f"{i}.yaml"
        file.write_text(yaml.safe_dump(data))
        out = bench.folder / f"from{i}"
        merge_command(recipe=str(file), out=str(out))
        outs.append(bench.load(str(out)))
    assert same(*outs)
    assert {x.dtype for x in outs[0].values()} == {torch.float32}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"slices": [{"sources": []}], "merge_method": "linear"}, "slices are not offered"),
        ({"modules": {"x": 1}, "merge_method": "linear"}, "modules are not offered"),
        ({"merge_method": "linear", "models": ["a"], "tokenizer_source": "union"}, "union"),
        ({"merge_method": "linear", "models": ["a"], "tokenizer": {"tokens": 1}}, "tokens"),
        ({"merge_method": "linear", "models": ["a"], "chat_template": "auto"}, "chat_template"),
        (
            {"merge_method": "nuslerp", "models": ["a"], "parameters": {"nuslerp_flatten": False}},
            "columns",
        ),
        (
            {"merge_method": "model_stock", "models": ["a"], "parameters": {"filter_wise": True}},
            "filter_wise",
        ),
        (
            {
                "merge_method": "multislerp",
                "models": ["a"],
                "parameters": {"normalize_weights": False},
            },
            "normalize_weights",
        ),
    ],
)
def test_mergekit_recipes_that_are_not_offered(data, word):
    with pytest.raises(MergeError, match=word):
        Recipe.parse(data)


def test_mergekit_words_are_translated():
    recipe = Recipe.parse(
        {
            "merge_method": "dare_ties",
            "base_model": "b",
            "models": [{"model": "a"}],
            "parameters": {"rescale": False, "density": 0.5},
            "dtype": "bfloat16",
            "tokenizer": {"source": "base"},
        }
    )
    assert recipe.parameters == {"rescale": "none", "density": 0.5}
    assert (recipe.base, recipe.out_dtype, recipe.tokenizer_from) == ("b", "bfloat16", "b")
    rows = {"merge_method": "nuslerp", "models": ["a", "b"]}
    rows["parameters"] = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    assert Recipe.parse(rows).parameters == {"granularity": "row"}


def test_slerp_counts_a_base_among_its_two_models(bench, family):
    base, paths, _, _ = family
    given = bench.merge("slerp", paths[:1], base, parameters={"t": 0.25})
    assert same(given, bench.merge("slerp", [base, paths[0]], parameters={"t": 0.25}))
    assert same(given, bench.merge("slerp", [base, paths[0]], base, parameters={"t": 0.25}))


# the command


def test_command_line_values(bench, family):
    base, paths, _, _ = family
    out = str(bench.folder / "cli")
    report = merge_command(
        paths,
        base=base,
        method="ties",
        out=out,
        options={"weight": "0.5,0.3,0.2", "density": "0.4", "seed": 3, "threads": None},
    )
    assert report.method == "ties"
    entries = [
        {"model": p, "weight": w, "density": 0.4}
        for p, w in zip(paths, (0.5, 0.3, 0.2), strict=True)
    ]
    assert same(bench.load(out), bench.merge("ties", entries, base))
    record = json.loads((Path(out) / "merge.json").read_text())
    assert record["recipe"]["seed"] == 3
    assert [i["model"] for i in record["inputs"]] == [*paths, base]
    assert all(len(i["header_sha256"]) == 64 for i in record["inputs"])
    assert record["versions"].keys() == {"mixgym", "numpy", "torch", "python"}
    assert len(record["delta_norm"]) == len(record["zero_share"]) == 3


def test_command_selects_by_default(bench, family):
    _, paths, _, _ = family
    report = merge_command(paths, out=str(bench.folder / "cli"), dry_run=True)
    assert report.method == "select"
    assert json.loads(report.to_json())["is_dry_run"] is True


def test_arguments_go_before_the_recipe(bench, family):
    base, paths, _, _ = family
    file = bench.folder / "r.yaml"
    data = {"method": "ties", "models": paths, "base": base, "parameters": {"density": 0.5}}
    file.write_text(yaml.safe_dump({**data, "out": "unused"}))
    out = str(bench.folder / "cli")
    merge_command(recipe=str(file), out=out, options={"lambda": 0.5, "weight": "1,2,3"})
    entries = [{"model": p, "weight": i + 1} for i, p in enumerate(paths)]
    want = bench.merge("ties", entries, base, parameters={"density": 0.5, "lambda": 0.5})
    assert same(bench.load(out), want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": "1,2"}, ["weight lists 2 values for 3 models", "one for each"]),
        ({"densty": 1}, ["densty", "did you mean density"]),
        ({"weight": "1,x"}, ["'1,x'", "cannot be read"]),
        ({"models": ["x"]}, ["unknown option 'models'"]),
    ],
)
def test_wrong_options(bench, family, options, words):
    _, paths, _, _ = family
    with pytest.raises(MergeError) as caught:
        merge_command(paths, out=str(bench.folder / "cli"), method="linear", options=options)
    for word in words:
        assert word in str(caught.value)


def test_missing_arguments(bench, family):
    _, paths, _, _ = family
    with pytest.raises(MergeError, match="--out"):
        merge_command(paths)
    with pytest.raises(MergeError, match="no models"):
        merge_command(out="x")
    with pytest.raises(MergeError, match="did you mean slerp"):
        merge_command(["a", "b"], method="slrp", out="x")


def test_progress_reaches_the_end(bench, family):
    _, paths, _, _ = family
    seen = []
    merge_command(
        paths,
        out=str(bench.folder / "cli"),
        method="linear",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == seen[0][1]


def test_broken_yaml(tmp_path):
    file = tmp_path / "r.yaml"
    for text, word in (
        ("a: [", "r.yaml:1: not valid YAML"),
        ("- a", "a mapping of options is needed"),
        ("", "no keys"),
        ("method: x\nmodels: [a]", "r.yaml:1: method=x: unknown merge method"),
    ):
        file.write_text(text)
        with pytest.raises(MergeError, match=word):
            Recipe.from_yaml(file)


def test_every_method_has_a_line():
    assert all(text and "\n" not in text for text in MERGE_METHODS.values())
    assert len(MERGE_METHODS) == 19


def test_statistics_on_request(bench, family):
    base_path, paths, base, models = family
    entries = {"method": "linear", "models": paths, "base": base_path, "statistics": True}
    _, report = bench.run(**entries)
    n = sum(x.numel() for x in base.values())
    for k, model in enumerate(models):
        zeros = sum(int((model[name] == base[name]).sum()) for name in base)
        assert report.zero_share[k] == pytest.approx(zeros / n)
        square = sum(float((model[m].double() - base[m].double()).square().sum()) for m in base)
        assert report.delta_norm[k] == pytest.approx(square**0.5, rel=1e-4)


def test_resampling_without_zeros_is_reported(bench, make_tensors):
    base = bench.write("base", make_tensors(0, torch.float32))
    paths = [bench.write(f"m{i}", make_tensors(i, torch.float32)) for i in (1, 2)]
    _, report = bench.run("select", paths, base, parameters={"resample": "all"})
    assert any("float32 checkpoints" in warning for warning in report.warnings)


def test_recipes_are_read_as_configurations_are(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "method: ties\nbase: b\nmodels:\n- {model: a, weight: 5e-1}\n- model: no\n"
        "parameters: {density: 5e-1}\nseed: 010\n"
    )
    recipe = Recipe.from_yaml(file)
    assert [entry.model for entry in recipe.models] == ["a", "no"]
    assert recipe.models[0].parameters == {"weight": 0.5}
    assert recipe.parameters == {"density": 0.5}
    assert recipe.seed == 10


def test_mergekits_recipes_are_read_alike(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "merge_method: ties\nbase_model: b\nparameters: {density: 5e-1}\n"
        "models: [{model: a, parameters: {weight: 1e-1}}, {model: c, parameters: {weight: 1}}]\n"
    )
    recipe = Recipe.from_yaml(file)
    assert recipe.parameters["density"] == 0.5
    assert recipe.models[0].parameters == {"weight": 0.1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("method: ties\nmodles: [a]\n", r"r.yaml:2: unknown key 'modles'; did you mean models"),
        ("method: ties\nseed: 1\nseed: 2\n", r"r.yaml:3: the key 'seed' stands here again"),
        ("method: ties\nmodels: [a]\nparameters:\n  denstiy: 1\n", "r.yaml:4: .*'denstiy'"),
        ("method: ties\nmodels:\n- a\n- {model: b, wight: 1}\n", "r.yaml:4: models.1.wight"),
        (
            "method: ties\nmodels:\n- a\n- {model: b, parameters: {density: x}}\n",
            "r.yaml:4: models.1.density must be",
        ),
        ("method: ties\nmodels: [a]\nthreads: 0\n", "r.yaml:3: threads"),
    ],
)
def test_mistakes_in_recipes_have_a_line(tmp_path, text, reason):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(MergeError, match=reason):
        Recipe.from_yaml(file)


def test_values_of_the_command_line_are_read_alike(bench, family):
    base, paths, *_ = family
    reports = [
        merge_command(
            paths,
            base=base,
            method="ties",
            out=str(bench.folder / f"cli{i}"),
            options={"density": density, "weight": weights},
        )
        for i, (density, weights) in enumerate([("5e-1", "1e0, 5e-1, 1"), ("0.5", "1, 0.5, 1")])
    ]
    one, two = (bench.load(report.out) for report in reports)
    assert all(torch.equal(one[name], two[name]) for name in two)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("linear", {}, True),
        ("select", {"resample": 0}, True),
        ("select", {"resample": "all"}, False),
        ("task_arithmetic", {}, False),
        ("linear", {"vocab": "base"}, False),
        ("linear", {"statistics": True}, False),
    ],
)
def test_a_base_that_is_not_read_is_said(bench, family, method, options, told):
    base, paths, *_ = family
    out = str(bench.folder / "told")
    report = merge_command(paths, base=base, method=method, out=out, options=options)
    found = [line for line in report.warnings if f"base {base} is not read" in line]
    assert len(found) == told
    assert (f"base {base} is not read" in report.text()) == told
    assert (found == report.to_dict()["warnings"][: len(found)]) or not told


@pytest.mark.parametrize("shape", [(6,), (4, 5), (3, 4, 5)])
def test_a_row_is_along_the_last_axis(bench, shape):
    """Selection by rows takes each of them whole, and draws for every one."""
    models = [torch.full(shape, float(k)) for k in range(1, 4)]
    merged = bench.one("select", models, parameters={"granularity": "row", "resample": 0}, seed=3)
    rows = merged.reshape(-1, shape[-1])
    assert all(len(set(row.tolist())) == 1 for row in rows)
    assert len(rows) == 1 or len(set(rows[:, 0].tolist())) > 1


def test_what_is_no_posix_system_is_told_so(monkeypatch, bench, family):
    from mixgym.trainer.merging import errors

    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    _, paths, *_ = family
    with pytest.raises(MergeError, match=r"merging needs a POSIX system .*WSL"):
        bench.merge("linear", paths)
