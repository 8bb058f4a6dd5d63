"""Adapters with a vocabulary, a tokenizer or a chat template of their own: results that load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixgym.trainer.merging import MergeError, MergeReport, Recipe, merge, merge_command

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS, GROWN = 60, 62


def make_tokenizer(folder, tokens, template=None):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(TOKENS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="t1", pad_token="t2")
    tokenizer.add_tokens([f"<new{i}>" for i in range(tokens - TOKENS)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    make_tokenizer(tmp_path / "base", TOKENS, "base's")
    return tmp_path / "base"


def is_tied(base):
    return bool(json.loads((base / "config.json").read_text())["tie_word_embeddings"])


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(
    base, name, seed, *, rows=GROWN, spelling="plain", tokens=GROWN, template="mine", **more
):
    """An adapter folder as peft writes it; ``rows`` of a new embedding, or None for none."""
    folder = base.parent / name
    folder.mkdir()
    tensors = {
        f"{PREFIX}{Q}.lora_A.weight": random(seed, 2, 16),
        f"{PREFIX}{Q}.lora_B.weight": random(seed + 1, 16, 2),
    }
    if rows is not None:
        whole = {EMBEDDING: random(seed + 2, rows, 16)}
        whole[HEAD] = whole[EMBEDDING].clone() if is_tied(base) else random(seed + 3, rows, 16)
        for target, tensor in whole.items():
            module = target.removesuffix(".weight")
            if spelling in ("plain", "both"):
                tensors[f"{PREFIX}{target}"] = tensor
            if spelling in ("wrapped", "both"):
                tensors[f"{PREFIX}{module}.modules_to_save.weight"] = tensor.clone()
                tensors[f"{PREFIX}{module}.original_module.weight"] = torch.zeros_like(tensor)
    tensors.update(more.pop("extra", {}))
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **more}))
    if tokens is not None:
        make_tokenizer(folder, tokens, template)
    return str(folder)


def run(method, models, out, **more) -> MergeReport:
    return merge(Recipe.parse({"method": method, "models": models, "out": str(out), **more}))


def loads(folder, rows):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == rows
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert model.get_output_embeddings().weight.shape[0] == rows
    assert len(tokenizer) == rows
    return model, tokenizer


@pytest.mark.parametrize("spelling", ["plain", "wrapped", "both"])
@pytest.mark.parametrize("given_base", [True, False])
@pytest.mark.parametrize(
    ("method", "options"), [("linear", {}), ("select", {"parameters": {"resample": 0}})]
)
def test_the_result_loads_with_the_adapters_tokens(base, spelling, given_base, method, options):
    models = [adapter(base, f"a{k}", 10 * k, spelling=spelling) for k in (1, 2)]
    out = base.parent / "out"
    more = {"base": str(base)} if given_base else {}
    report = run(method, models, out, **more, **options)
    model, tokenizer = loads(out, GROWN)
    assert tokenizer.chat_template == "mine"
    assert report.warnings == []
    if method == "linear":
        expected = (random(12, GROWN, 16) + random(22, GROWN, 16)) / 2
        torch.testing.assert_close(model.get_input_embeddings().weight.data, expected)


def test_one_adapter_can_be_passed_through(base):
    out = base.parent / "out"
    run("passthrough", [adapter(base, "a", 1)], out)
    loads(out, GROWN)


def test_methods_on_differences_say_that_the_base_lacks_rows(base):
    models = [adapter(base, f"a{k}", 10 * k) for k in (1, 2)]
    with pytest.raises(MergeError, match=rf"vocab_size is {TOKENS} in model .*base.* and {GROWN}"):
        run("task_arithmetic", models, base.parent / "out", base=str(base))
    report = run(
        "task_arithmetic",
        models,
        base.parent / "cut",
        base=str(base),
        vocab="base",
        tokenizer_from=str(base),
    )
    assert report.tensors > 0
    loads(base.parent / "cut", TOKENS)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties"])
def test_a_template_of_the_adapters_is_kept_where_nothing_grew(base, method):
    models = [adapter(base, f"a{k}", 10 * k, rows=None, tokens=TOKENS) for k in (1, 2)]
    out = base.parent / "out"
    report = run(method, models, out, base=str(base))
    assert loads(out, TOKENS)[1].chat_template == "mine"
    assert report.warnings == []


def test_adapters_without_a_tokenizer_take_the_bases(base):
    models = [adapter(base, f"a{k}", 10 * k, rows=None, tokens=None) for k in (1, 2)]
    out = base.parent / "out"
    run("linear", models, out)
    assert loads(out, TOKENS)[1].chat_template == "base's"


def test_adapters_that_disagree(base):
    one = adapter(base, "a1", 10)
    other = adapter(base, "a2", 20, template="another")
    report = run("linear", [one, other], base.parent / "out")
    (warning,) = report.warnings
    assert f"the chat template of model {other}" in warning
    small = adapter(base, "a3", 30, rows=None, tokens=TOKENS)
    with pytest.raises(MergeError, match=f"vocab_size is {GROWN} in model .*a1 and {TOKENS} in"):
        run("linear", [one, small], base.parent / "out2")
    padded = adapter(base, "a4", 40, tokens=TOKENS)  # rows, but other tokens
    with pytest.raises(MergeError, match=r"tokenizer.json differs between model .*a1 and model"):
        run("linear", [one, padded], base.parent / "out3")
    assert not (base.parent / "out3").exists()


def test_added_tokens_without_rows_are_refused_with_the_reason(base):
    models = [adapter(base, f"a{k}", 10 * k, rows=None) for k in (1, 2)]
    with pytest.raises(MergeError, match=r"has the token 61, and its embedding 60 rows: the added"):
        run("linear", models, base.parent / "out")


@pytest.mark.parametrize("base", [False], ids=["untied"], indirect=True)
def test_a_head_that_was_not_saved_is_refused_with_the_reason(base):
    broken = adapter(base, "a", 1, rows=None, extra={f"{PREFIX}{EMBEDDING}": random(3, GROWN, 16)})
    with pytest.raises(MergeError, match=r"lm_head.weight has 60.*only a part of it was saved"):
        run("passthrough", [broken], base.parent / "out")


@pytest.mark.parametrize("base", [True], ids=["tied"], indirect=True)
def test_a_trained_head_on_a_tied_base_is_refused_with_the_reason(base):
    extra = {f"{PREFIX}{HEAD}": random(9, GROWN, 16)}
    with pytest.raises(MergeError, match="has a tied head, and the adapter a trained lm_head"):
        run("passthrough", [adapter(base, "a", 1, extra=extra)], base.parent / "out")


def test_trained_single_tokens_are_refused_by_name(base):
    with pytest.raises(MergeError, match="adapters with trainable_token_indices are not offered"):
        run(
            "passthrough",
            [adapter(base, "a", 1, rows=None, trainable_token_indices=[3])],
            base.parent / "out",
        )


def test_stacked_adapters_keep_tokenizer_and_template(base):
    models = [adapter(base, f"a{k}", 10 * k, rows=None, tokens=TOKENS) for k in (1, 2)]
    out = base.parent / "cat"
    report = merge_command(models, base=str(base), method="lora_cat", out=str(out))
    assert (out / "chat_template.jinja").read_text() == "mine"
    assert (out / "tokenizer.json").read_bytes() == (
        Path(models[0]) / "tokenizer.json"
    ).read_bytes()
    (warning,) = report.warnings
    assert "is not read by lora_cat" in warning
    assert any("lora_A" in name for name in load_file(out / "adapter_model.safetensors"))
    other = adapter(base, "a3", 30, rows=None, tokens=TOKENS, template="another")
    report = merge_command([models[0], other], method="lora_cat", out=str(base.parent / "cat2"))
    assert ["chat template" in line for line in report.warnings] == [True]
    grown = {"models": [models[0], adapter(base, "a4", 40)], "tokenizer_from": "none"}
    with pytest.raises(MergeError, match="holds the whole tensor"):
        run("lora_cat", out=base.parent / "cat3", **grown)
