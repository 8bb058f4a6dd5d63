"""What is refused, and in which words: model, tensor and fix are named each time."""

import json
import struct
from pathlib import Path

import pytest
import torch

from mixgym.trainer.merging import MergeError, Recipe, merge


def refused(bench, method, models, *words, base=None, **more):
    recipe = bench.recipe(method, models, base, **more)
    with pytest.raises(MergeError) as caught:
        merge(recipe)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    assert not Path(recipe.out).exists()
    assert not list(bench.folder.glob(".*partial*"))
    return message


@pytest.fixture
def pair(bench):
    tensors = {"a": torch.ones(3, 4), "b": torch.ones(5)}
    return tensors, bench.write("good", tensors)


def test_missing_tensor(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", {"a": tensors["a"]})
    refused(bench, "linear", [good, bad], "model", "bad", "lacks tensor b", "leave it out")


def test_unexpected_tensor(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", {**tensors, "q.bias": torch.ones(2)})
    refused(bench, "linear", [good, bad], "bad", "unexpected tensor q.bias", "leave one out")


def test_shape_mismatch_is_a_table(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", {**tensors, "a": torch.ones(3, 5)})
    refused(bench, "ties", [bad], f"{good} -> [3, 4]", f"{bad} -> [3, 5]", "tensor a", base=good)


def test_vocabulary_mismatch_suggests_the_option(bench):
    one = bench.write("one", {"model.embed_tokens.weight": torch.ones(16, 4)})
    two = bench.write(
        "two", {"model.embed_tokens.weight": torch.ones(20, 4)}, config={"vocab_size": 20}
    )
    refused(bench, "ties", [two], "vocab_size", "16", "20", "--vocab base", base=one)
    merged = bench.merge("task_arithmetic", [two], one, vocab="base")
    assert merged["model.embed_tokens.weight"].shape == (16, 4)


@pytest.mark.parametrize("chunk", [1, 4096])
def test_vocabulary_is_filled_from_the_base(bench, chunk):
    base = torch.randn(3000, 4)
    small = torch.randn(1111, 4).to(torch.bfloat16)
    one = bench.write("one", {"model.embed_tokens.weight": base})
    two = bench.write("two", {"model.embed_tokens.weight": small})
    merged = bench.merge("passthrough", [two], one, vocab="base", chunk_elements=chunk)[
        "model.embed_tokens.weight"
    ]
    assert torch.equal(merged[:1111], small)
    assert torch.equal(merged[1111:], base[1111:].to(torch.bfloat16))


def test_dtype_class_mismatch(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", {**tensors, "b": torch.ones(5, dtype=torch.int64)})
    refused(bench, "linear", [good, bad], "tensor b", f"{bad} -> I64", "one dtype")


def test_integers_must_agree(bench, pair):
    tensors, _ = pair
    one = bench.write("one", {**tensors, "ids": torch.arange(9)})
    two = bench.write("two", {**tensors, "ids": torch.arange(9) + (torch.arange(9) == 4)})
    refused(bench, "linear", [one, two], "tensor ids", "one", "two", "element 4", "leave one out")
    three = bench.write("three", {**tensors, "ids": torch.arange(9)})
    assert torch.equal(bench.merge("linear", [one, three])["ids"], torch.arange(9))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["linear", "select", "ties", "karcher", "passthrough"])
def test_nonfinite_input(bench, pair, method, value):
    tensors, good = pair
    spoilt = tensors["a"].clone()
    spoilt[1, 2] = value
    bad = bench.write("bad", {**tensors, "a": spoilt})
    models = [bad] if method == "passthrough" else [good, bad]
    base = bench.write("base", tensors) if method == "ties" else None
    words = (f"model {bad}", "tensor a", "element 6", "--allow-nonfinite")
    refused(bench, method, models, *words, base=base)
    if method == "linear":
        merged = bench.merge(method, models, base, allow_nonfinite=True)
        assert not torch.isfinite(merged["a"][1, 2])


def test_overflow_of_the_output(bench):
    one = bench.write("one", {"a": torch.full((3,), 60000.0)})
    refused(
        bench, "linear", [one], "tensor a", "overflows F16", "--out-dtype", out_dtype="float16",
        parameters={"weight": 2.0, "normalize": False},
    )  # fmt: skip


@pytest.mark.parametrize("method", ["ties", "dare_linear", "model_stock", "nearswap"])
def test_base_required(bench, pair, method):
    refused(bench, method, [pair[1]], method, "base", "--base")


def test_resampling_needs_a_base(bench, pair):
    refused(bench, "select", [pair[1]], "--base", parameters={"resample": 1})


def test_number_of_models(bench, pair):
    refused(bench, "slerp", [pair[1]], "slerp merges 2 model(s)", "1 given")


def test_weights_that_sum_to_zero(bench, pair):
    models = [{"model": pair[1], "weight": 1.0}, {"model": pair[1], "weight": -1.0}]
    refused(bench, "linear", models, "sum to 0", "tensor a", pair[1], "above 0")


def test_negative_probability(bench, pair):
    models = [{"model": pair[1], "weight": 2.0}, {"model": pair[1], "weight": -1.0}]
    refused(bench, "select", models, "-1", "at least 0")


@pytest.mark.parametrize("density", [0.0, 1.5, -0.1])
def test_density_outside_its_interval(bench, pair, density):
    base = bench.write("base", pair[0])
    words = ("density", f"{density:g}", "(0, 1]", pair[1], "tensor a")
    refused(bench, "ties", [pair[1]], *words, base=base, parameters={"density": density})


@pytest.mark.parametrize(
    ("key", "value"), [("rescale", "l2"), ("granularity", "head"), ("resample", -1)]
)
def test_words_that_are_unknown(bench, pair, key, value):
    base = bench.write("base", pair[0])
    method = "dare_linear" if key == "rescale" else "select"
    refused(bench, method, [pair[1]], key, repr(value), base=base, parameters={key: value})


def test_config_gate(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", tensors, config={"num_attention_heads": 4})
    refused(bench, "linear", [good, bad], "num_attention_heads", "None", "4", good, bad)


OLDER = {"num_attention_heads": 2, "intermediate_size": 32, "rope_theta": 10000.0}


def test_one_configuration_written_by_two_versions(bench, pair):
    tensors, _ = pair
    older = {**OLDER, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 32,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
    }
    paths = [bench.write(str(i), tensors, config=c) for i, c in enumerate((older, newer))]
    _, report = bench.run("linear", paths)
    assert report.warnings == []
    config = json.loads((Path(report.out) / "config.json").read_text())
    assert config["rope_theta"] == 10000.0, "the first model's, as it stands"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope_parameters", {"rope_theta": 5e5}), ("head_dim", 8), ("num_key_value_heads", 1)],
)
def test_left_out_keys_stand_for_their_defaults(bench, pair, key, value):
    tensors, _ = pair
    one = bench.write("older", tensors, config=OLDER)
    config = {**OLDER, key: value}
    if key == "rope_parameters":
        del config["rope_theta"]
    two = bench.write("newer", tensors, config=config)
    refused(bench, "linear", [one, two], key, one, two, "one architecture")


def test_unknown_kinds_of_model_are_compared_as_written(bench, pair):
    tensors, _ = pair
    config = {"model_type": "own", "rope_theta": 1.0}
    one = bench.write("one", tensors, config=config)
    two = bench.write("two", tensors, config={**config, "head_dim": 4})
    refused(bench, "linear", [one, two], "head_dim", "None", "4", one, two)


def test_harmless_keys_are_ignored_and_others_warn(bench, pair):
    tensors, good = pair
    config = {"transformers_version": "9", "torch_dtype": "float64", "attention_dropout": 0.1}
    other = bench.write("other", tensors, config=config)
    _, report = bench.run("linear", [good, other])
    assert len(report.warnings) == 1
    assert "attention_dropout" in report.warnings[0]


def test_tie_flags_must_agree(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", tensors, config={"tie_word_embeddings": True})
    refused(bench, "linear", [good, bad], "tie_word_embeddings", "both")


def test_missing_head(bench):
    tensors = {"model.embed_tokens.weight": torch.ones(16, 4)}
    config = {"architectures": ["LlamaForCausalLM"]}
    bad = bench.write("bad", tensors, config=config)
    refused(bench, "linear", [bad], "bad", "lm_head.weight", "tie_word_embeddings", "set the flag")


def test_quantised_models(bench, pair):
    tensors, _ = pair
    one = bench.write("one", tensors, config={"quantization_config": {"bits": 4}})
    refused(bench, "linear", [one], "one", "quantised", "dequantise")
    two = bench.write("two", {**tensors, "q_proj.qweight": torch.ones(3, dtype=torch.int32)})
    refused(bench, "linear", [two], "two", "q_proj.qweight", "unquantised")


@pytest.mark.parametrize(
    ("file", "word"),
    [("model.gguf", "GGUF"), ("__0_0.distcp", "FSDP"), ("x_optim_states.pt", "zero_to_fp32")],
)
def test_foreign_formats(bench, file, word):
    folder = bench.folder / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / file).write_text("")
    refused(bench, "linear", [str(folder)], "foreign", word)


def test_no_folder_no_weights_no_config(bench):
    refused(bench, "linear", ["org/name"], "org/name", "not a folder", "hf download")
    folder = bench.folder / "empty"
    folder.mkdir()
    refused(bench, "linear", [str(folder)], "empty", "config.json", "save_pretrained")
    (folder / "config.json").write_text("{}")
    refused(bench, "linear", [str(folder)], "empty", "no model.safetensors", "save_pretrained")
    (folder / "config.json").write_text("{")
    refused(bench, "linear", [str(folder)], "empty", "config.json cannot be read")


def test_two_checkpoints_in_one_folder(bench, pair):
    _, good = pair
    (Path(good) / "model.safetensors.index.json").write_text("{}")
    refused(bench, "linear", [good], "two checkpoints", "model.safetensors", "stale")


def test_missing_shard_and_wrong_index(bench, pair):
    tensors, _ = pair
    one = bench.write("one", tensors, shards=2)
    index = Path(one) / "model.safetensors.index.json"
    sound = index.read_text()
    content = json.loads(sound)
    content["weight_map"]["c"] = content["weight_map"]["a"]
    index.write_text(json.dumps(content))
    refused(bench, "linear", [one], "one", "tensor c", "again")
    index.write_text(sound)
    (Path(one) / "model-00002.safetensors").unlink()
    refused(bench, "linear", [one], "one", "model-00002.safetensors", "missing shard")


def test_a_shard_with_more_than_its_index_says(bench, pair):
    tensors = {**pair[0], "c": torch.ones(2)}
    one = bench.write("one", tensors, shards=2)
    index = Path(one) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["c"]
    index.write_text(json.dumps(content))
    refused(bench, "linear", [one], "one", "tensor c", "index does not place", "add it")


def test_truncated_file(bench, pair):
    file = Path(pair[1]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused(bench, "linear", [pair[1]], "good", "model.safetensors", "truncated", "again")


def test_broken_headers(bench, pair):
    file = Path(pair[1]) / "model.safetensors"
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    file.write_bytes(raw[:4])
    refused(bench, "linear", [pair[1]], "not a sound safetensors file")
    file.write_bytes(struct.pack("<Q", 1 << 40) + raw[8:])
    refused(bench, "linear", [pair[1]], "header claims")
    file.write_bytes(raw[:8] + b"x" * length + raw[8 + length :])
    refused(bench, "linear", [pair[1]], "cannot be read")
    for name, change, word in (
        ("a", {"shape": [3, 3]}, "spans"),
        ("a", {"data_offsets": [8, 56]}, "gap or an overlap"),
        ("b", {"dtype": "F8_E4M3"}, "F8_E4M3"),
    ):
        text = json.dumps({**header, name: {**header[name], **change}}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
        refused(bench, "linear", [pair[1]], word, "good")


def test_bin_that_is_no_plain_dictionary(bench, pair):
    tensors, _ = pair
    one = bench.write("one", tensors, as_bin=True)
    torch.save({"model": tensors}, Path(one) / "pytorch_model.bin")
    refused(bench, "linear", [one], "one", "flat dictionary", "save_pretrained")
    torch.save([print], Path(one) / "pytorch_model.bin")
    refused(bench, "linear", [one], "one", "plain weights", "save_pretrained")


@pytest.mark.parametrize("shards", [1, 2])
def test_bin_equals_safetensors(bench, make_tensors, shards):
    tensors = make_tensors(1)
    tensors["transposed"] = torch.randn(300, 40).to(torch.bfloat16).t()
    tensors["bool"] = torch.tensor([True, False])
    one = bench.write("one", tensors, as_bin=True, shards=shards)
    merged = bench.merge("passthrough", [one], chunk_elements=4096)
    for name, tensor in tensors.items():
        assert torch.equal(merged[name], tensor)


def tokenizers(*folders):
    for i, folder in enumerate(folders):
        content = {"model": {"vocab": {"a": i}}, "padding": {"x": i}}
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content))
        (Path(folder) / "chat_template.jinja").write_text(f"template {i}")


def test_tokenizers_differ(bench, pair):
    tensors, good = pair
    bad = bench.write("bad", tensors)
    tokenizers(good, bad)
    words = ("tokenizer.json", good, bad, "--tokenizer-from")
    refused(bench, "linear", [good, bad], *words)
    _, report = bench.run("linear", [good, bad], tokenizer_from=bad)
    assert (Path(report.out) / "tokenizer.json").read_bytes() == (
        Path(bad) / "tokenizer.json"
    ).read_bytes()
    assert (Path(report.out) / "chat_template.jinja").read_text() == "template 1"
    _, report = bench.run("linear", [good, bad], tokenizer_from="none")
    assert not (Path(report.out) / "tokenizer.json").exists()
    refused(bench, "linear", [good], "tokenizer_from", tokenizer_from=str(bench.folder))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_another_chat_template_is_reported(bench, pair, file):
    tensors, base = pair
    tuned = bench.write("tuned", tensors)
    for folder in (base, tuned):
        (Path(folder) / "tokenizer.json").write_text("{}")
    text = "mine" if file.endswith("jinja") else json.dumps({"chat_template": "mine"})
    (Path(tuned) / file).write_text(text)
    _, report = bench.run("task_arithmetic", [tuned], base)
    assert len(report.warnings) == 1
    assert "chat template" in report.warnings[0]
    assert f"--tokenizer-from {tuned}" in report.warnings[0]
    _, report = bench.run("task_arithmetic", [tuned], base, tokenizer_from=tuned)
    assert report.warnings == []
    (Path(base) / "chat_template.jinja").write_text("mine")
    _, report = bench.run("task_arithmetic", [tuned], base)
    assert report.warnings == []


def test_padding_in_use_is_no_difference(bench, pair):
    tensors, good = pair
    other = bench.write("other", tensors)
    for i, folder in enumerate((good, other)):
        content = {"model": {}, "padding": i, "truncation": i}
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content))
    _, report = bench.run("linear", [good, other])
    assert (Path(report.out) / "tokenizer.json").is_file()


def test_base_is_the_donor_and_dtypes_are_kept(bench, pair):
    tensors, _ = pair
    base = bench.write("base", tensors, config={"note": "base", "torch_dtype": "bfloat16"})
    half = bench.write("half", {k: v.to(torch.float16) for k, v in tensors.items()})
    merged, report = bench.run("task_arithmetic", [half], base)
    assert {x.dtype for x in merged.values()} == {torch.float16}
    config = json.loads((Path(report.out) / "config.json").read_text())
    assert (config["note"], config["torch_dtype"]) == ("base", "float16")
    mixed = bench.merge("linear", [half, bench.write("b16", {
        k: v.to(torch.bfloat16) for k, v in tensors.items()
    })])  # fmt: skip
    assert {x.dtype for x in mixed.values()} == {torch.float32}


def test_base_is_cast_before_it_is_compared(bench):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(9000, generator=generator)
    model = base.to(torch.bfloat16)
    model[:10] += 1
    _, report = bench.run("ties", [bench.write("m", {"w": model})], bench.write("b", {"w": base}))
    assert report.zero_share == [(9000 - 10) / 9000]


def test_recipe_is_not_found(tmp_path):
    with pytest.raises(MergeError, match=r"nothing.yaml: cannot be read .No such file"):
        Recipe.from_yaml(tmp_path / "nothing.yaml")
