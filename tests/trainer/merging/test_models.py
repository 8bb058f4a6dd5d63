"""Real architectures: merged folders load and generate; adapters equal peft's arithmetic; soups."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mixgym.envs.learners.models import smollm2
from mixgym.trainer.merging import MergeError, Recipe, merge
from mixgym.trainer.merging.soup import greedy_soup, uniform_soup

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))


def qwen():
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    )


def save_family(folder, make, dtype=torch.bfloat16):
    paths = []
    for seed in range(4):
        torch.manual_seed(0)
        model = make().to(dtype)
        torch.manual_seed(seed)
        if seed:
            for parameter in model.parameters():
                parameter.data += (torch.randn(parameter.shape) * 0.02).to(dtype)
        path = folder / f"m{seed}"
        model.save_pretrained(path, max_shard_size="15KB" if seed == 2 else "5GB")
        paths.append(str(path))
    return paths


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 9, 2]])).logits


@pytest.mark.parametrize("make", [llama, qwen, gpt2])
@pytest.mark.parametrize("method", ["select", "linear", "ties", "karcher"])
def test_merged_models_load_and_generate(tmp_path, make, method):
    base, *paths = save_family(tmp_path, make)
    data = {"method": method, "models": paths, "out": str(tmp_path / "out")}
    if method in ("select", "ties"):
        data["base"] = base
    if method == "select":
        data["parameters"] = {"resample": "all"}
    report = merge(Recipe.parse(data))
    model, info = AutoModelForCausalLM.from_pretrained(report.out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    tokens = model.generate(torch.tensor([[1, 2, 3]]), **GREEDY)
    assert tokens.shape == (1, 7)


@pytest.mark.parametrize("make", [llama, qwen, gpt2])
def test_a_model_merged_with_itself_is_itself(tmp_path, make):
    base, path, *_ = save_family(tmp_path, make)
    for method in ("linear", "select"):
        out = tmp_path / method
        merge(Recipe.parse({"method": method, "models": [path] * 3, "base": base, "out": str(out)}))
        one, two = load_file(Path(path) / "model.safetensors"), load_file(out / "model.safetensors")
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k].view(torch.int16), two[k].view(torch.int16)) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "select", "task_arithmetic", "ties", "karcher"])
def test_smollm2_merged_with_itself_is_itself(tmp_path, monkeypatch, method):
    monkeypatch.delenv("MIXGYM_CACHE", raising=False)  # the user's own: fetched and converted once
    path = smollm2.folder()
    if not (path / "config.json").exists():
        pytest.skip("not fetched: make smollm2")
    data = {"method": method, "models": [str(path)] * 3, "out": str(tmp_path / "out")}
    if method in ("task_arithmetic", "ties"):
        data["base"] = str(write_shaken(path, tmp_path / "base"))
        data["parameters"] = {"weight": 1 / 3} if method == "task_arithmetic" else {"density": 1.0}
    merge(Recipe.parse(data))
    one, two = load_file(path / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k].view(torch.int16), two[k].view(torch.int16)) for k in one)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generate(torch.tensor([[1, 2, 3]]), **GREEDY).shape == (1, 7)


def write_shaken(path, target):
    """A base near a model: its weights, a little off."""
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(path / name, target / name)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (t.float() * (1 + 0.01 * torch.randn(t.shape, generator=generator))).to(t.dtype)
        for name, t in load_file(path / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


# adapters, as peft stores them


def write_adapter(folder, name, base, factors, **options):
    """Write factors {module: (A, B)} as an adapter folder."""
    path = folder / name
    path.mkdir()
    tensors = {}
    for module, (a, b) in factors.items():
        key = f"base_model.model.{module}"
        if "embed" in module or module.endswith("wte"):
            tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"] = a, b
        else:
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
    tensors |= options.pop("extra", {})
    rank = next(iter(factors.values()))[0].shape[0] if factors else 4
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 16,
        "target_modules": ["q_proj"],
        **options,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "adapter_model.safetensors")
    return str(path)


Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


def pair(out, inner, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, inner, generator=generator) * 0.1,
        torch.randn(out, rank, generator=generator) * 0.1,
    )


@pytest.fixture
def llama_base(tmp_path):
    return save_family(tmp_path, llama, torch.float32)[0]


def delta_of(base, out, module):
    one = load_file(Path(base) / "model.safetensors")[f"{module}.weight"]
    return load_file(Path(out) / "model.safetensors")[f"{module}.weight"].double() - one.double()


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, 16 / 4),
        ({"use_rslora": True}, 16 / 2),
        ({"alpha_pattern": {"q_proj": 6}}, 6 / 4),
        ({"r": 9, "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 4}}, 16 / 4),
    ],
)
def test_scaling_of_an_adapter(tmp_path, llama_base, options, scaling):
    a, b = pair(32, 32, 4, 0)
    adapter = write_adapter(tmp_path, "adapter", llama_base, {Q: (a, b)}, **options)
    out = str(tmp_path / "out")
    merge(Recipe.parse({"method": "passthrough", "models": [adapter], "out": out}))
    want = scaling * (b.double() @ a.double())
    torch.testing.assert_close(delta_of(llama_base, out, Q), want, rtol=1e-4, atol=1e-6)
    assert logits(out).shape == (1, 4, 61)


def test_embeddings_and_whole_modules_of_an_adapter(tmp_path, llama_base):
    a, b = torch.randn(4, 61), torch.randn(32, 4)
    head = torch.randn(61, 32)
    adapter = write_adapter(
        tmp_path,
        "adapter",
        llama_base,
        {"model.embed_tokens": (a, b)},
        extra={"base_model.model.lm_head.weight": head},
    )
    out = str(tmp_path / "out")
    merge(Recipe.parse({"method": "passthrough", "models": [adapter], "out": out}))
    want = 4 * (b.double() @ a.double()).T
    got = delta_of(llama_base, out, "model.embed_tokens")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(load_file(f"{out}/model.safetensors")["lm_head.weight"], head)


def test_transposed_weights_of_an_adapter(tmp_path):
    base = save_family(tmp_path, gpt2, torch.float32)[0]
    a, b = pair(96, 32, 4, 0)
    module = "transformer.h.0.attn.c_attn"
    adapter = write_adapter(tmp_path, "adapter", base, {module: (a, b)}, fan_in_fan_out=True)
    out = str(tmp_path / "out")
    merge(Recipe.parse({"method": "passthrough", "models": [adapter], "out": out}))
    want = 4 * (b.double() @ a.double()).T
    torch.testing.assert_close(delta_of(base, out, module), want, rtol=1e-4, atol=1e-6)


def test_adapters_in_bf16_merge_like_their_baked_models(tmp_path):
    base = save_family(tmp_path, llama)[0]
    adapters = [
        write_adapter(tmp_path, f"a{k}", base, {Q: pair(32, 32, 4, k), UP: pair(48, 32, 4, 9 + k)})
        for k in range(2)
    ]
    outs = []
    for chunk, threads in ((4096, 2), (1 << 18, 1)):
        out = tmp_path / f"out{chunk}"
        data = {"method": "ties", "models": adapters, "base": base, "out": str(out)}
        merge(Recipe.parse({**data, "chunk_elements": chunk, "threads": threads}))
        outs.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(outs[0][k], outs[1][k]) for k in outs[0])
    assert {x.dtype for x in outs[0].values()} == {torch.bfloat16}


def test_stacked_adapters_equal_the_merged_models(tmp_path, llama_base):
    adapters = [
        write_adapter(tmp_path, "a0", llama_base, {Q: pair(32, 32, 4, 0), UP: pair(48, 32, 4, 1)}),
        write_adapter(tmp_path, "a1", llama_base, {Q: pair(32, 32, 3, 2)}, use_rslora=True),
    ]
    entries = [{"model": x, "weight": w} for x, w in zip(adapters, (0.7, 0.3), strict=True)]
    models = {"method": "linear", "models": entries, "out": str(tmp_path / "baked")}
    merge(Recipe.parse(models))
    report = merge(Recipe.parse({**models, "method": "lora_cat", "out": str(tmp_path / "cat")}))
    assert report.tensors == 4
    applied = {"method": "passthrough", "models": [str(tmp_path / "cat")]}
    merge(Recipe.parse({**applied, "out": str(tmp_path / "applied")}))
    one = load_file(tmp_path / "baked" / "model.safetensors")
    two = load_file(tmp_path / "applied" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "cat" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 7
    assert config["rank_pattern"] == {UP: 4}
    assert config["target_modules"] == ["q_proj", "up_proj"]


def test_cutting_the_rank_reports_what_is_lost(tmp_path, llama_base):
    adapters = [
        write_adapter(tmp_path, f"a{k}", llama_base, {Q: pair(32, 32, 4, k)}) for k in range(2)
    ]
    data = {"method": "lora_cat", "models": adapters}
    whole = merge(Recipe.parse({**data, "out": str(tmp_path / "w")}))
    cut = merge(Recipe.parse({**data, "out": str(tmp_path / "c"), "parameters": {"rank": 3}}))
    assert not whole.warnings
    assert "energy" in cut.warnings[0]
    products = []
    for out in ("w", "c"):
        tensors = load_file(tmp_path / out / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{Q}.lora_{x}.weight"] for x in "AB")
        products.append(b.double() @ a.double())
    values = torch.linalg.svdvals(products[0])
    lost = float((values[3:] ** 2).sum() / (values**2).sum())
    record = json.loads((tmp_path / "c" / "merge.json").read_text())
    assert record["discarded_energy"][f"{Q}.weight"] == pytest.approx(lost, rel=1e-4)
    gap = torch.linalg.norm(products[0] - products[1]) ** 2 / (values**2).sum()
    assert float(gap) == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 5}, "rank 4"),
        ({"base_model_name_or_path": "org/hub"}, "--base"),
        ({"extra": {"base_model.model.x.lora_magnitude_vector": torch.ones(1)}}, "lora_magnitude"),
    ],
)
def test_adapters_that_are_refused(tmp_path, llama_base, options, word):
    adapter = write_adapter(tmp_path, "adapter", llama_base, {Q: pair(32, 32, 4, 0)}, **options)
    recipe = Recipe.parse(
        {"method": "passthrough", "models": [adapter], "out": str(tmp_path / "out")}
    )
    with pytest.raises(MergeError, match=word) as caught:
        merge(recipe)
    assert "adapter" in str(caught.value)


def test_adapters_of_another_base_are_refused(tmp_path, llama_base):
    wrong = write_adapter(tmp_path, "wrong", llama_base, {Q: pair(48, 32, 4, 0)})
    other = write_adapter(tmp_path, "other", llama_base, {"x.q_proj": pair(32, 32, 4, 0)})
    for adapter, word in ((wrong, "factors make"), (other, "not in its base")):
        with pytest.raises(MergeError, match=word):
            merge(Recipe.parse({"method": "passthrough", "models": [adapter], "out": "unused"}))


def test_stacking_needs_plain_adapters(tmp_path, llama_base):
    good = write_adapter(tmp_path, "good", llama_base, {Q: pair(32, 32, 4, 0)})
    extra = {"base_model.model.lm_head.weight": torch.ones(61, 32)}
    bad = write_adapter(tmp_path, "bad", llama_base, {Q: pair(32, 32, 4, 0)}, extra=extra)
    other = write_adapter(tmp_path, "o", llama_base, {Q: pair(32, 32, 4, 0)}, task_type="X")
    for models, word in (
        ([good, llama_base], "not a LoRA folder"),
        ([good, bad], "lm_head.weight"),
        ([good, other], "task_type"),
    ):
        recipe = {"method": "lora_cat", "models": models, "out": str(tmp_path / "out")}
        with pytest.raises(MergeError, match=word):
            merge(Recipe.parse(recipe))
    assert not (tmp_path / "out").exists()


# soups


def distance_to(target):
    """A loss: squared distance of the one tensor from a target."""
    return lambda folder: float(
        (load_file(f"{folder}/model.safetensors")["w"] - target).square().sum()
    )


def test_greedy_soup_keeps_what_helps(bench):
    values = [[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [0.0, 0.9]]
    paths = [bench.write(f"m{i}", {"w": torch.tensor(v)}) for i, v in enumerate(values)]
    soup = greedy_soup(bench.recipe("linear", paths), distance_to(torch.tensor([0.5, 0.5])))
    assert soup.chosen == [paths[3], paths[0]]
    assert [kept for _, _, kept in soup.trials] == [True, False, False] or soup.loss < 0.02
    assert soup.loss == pytest.approx(distance_to(torch.tensor([0.5, 0.5]))(soup.out))
    assert soup.losses[paths[2]] == max(soup.losses.values())
    assert not list(bench.folder.glob(".*"))


def test_greedy_soup_of_one(bench):
    paths = [bench.write(f"m{i}", {"w": torch.tensor([float(i)])}) for i in range(3)]
    soup = greedy_soup(bench.recipe("linear", paths), distance_to(torch.tensor([0.0])))
    assert (soup.chosen, soup.loss) == ([paths[0]], 0.0)
    assert bench.load(soup.out)["w"].tolist() == [0.0]


def test_uniform_soup(bench):
    paths = [bench.write(f"m{i}", {"w": torch.tensor([float(i)])}) for i in range(3)]
    soup = uniform_soup(bench.recipe("linear", paths), distance_to(torch.tensor([1.0])))
    assert soup.loss == 0.0


def test_soups_refuse_losses_that_are_not_finite(bench):
    paths = [bench.write(f"m{i}", {"w": torch.tensor([float(i)])}) for i in range(2)]
    with pytest.raises(MergeError, match="finite"):
        greedy_soup(bench.recipe("linear", paths), lambda folder: float("nan"))
    assert not list(bench.folder.glob("out*"))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (llama, {"target_modules": ["q_proj", "down_proj"]}),
        (llama, {"target_modules": ["q_proj", "o_proj"], "use_rslora": True}),
        (llama, {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}}),
        (llama, {"target_modules": ["up_proj"], "alpha_pattern": {"layers.1.mlp.up_proj": 3}}),
        (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
        (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore")
def test_adapters_equal_peft(tmp_path, make, options, dtype):
    peft = pytest.importorskip("peft")
    base = save_family(tmp_path, make, dtype)[0]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape) * 0.1).to(parameter.dtype)
    model.save_pretrained(tmp_path / "adapter")
    baked = model.merge_and_unload()
    out = str(tmp_path / "out")
    recipe = {"method": "passthrough", "models": [str(tmp_path / "adapter")], "base": base}
    merge(Recipe.parse({**recipe, "out": out}))
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).state_dict()
    theirs = baked.state_dict()
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7  # an ulp of bfloat16
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance / 8)
