import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from mixgym.envs.errors import PackingError
from mixgym.envs.learners.models.attention import (
    DOCUMENTS,
    choose_attention,
    document_attention,
    leak,
    own_attention,
    packed_forward,
    register,
)

LENGTHS = (7, 1, 12, 4)
KINDS = ("llama", "qwen2", "gpt2", "gemma")
VOCABULARY = 61

ModelMaker = Callable[..., Any]


def tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (1, sum(LENGTHS)), generator=generator)


def positions() -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in LENGTHS])[None]


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Summed NLL of everything after a document's first token."""
    return cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


def unpacked(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and loss, one document and one ordinary call at a time."""
    model.set_attn_implementation("eager" if model.dtype == torch.float32 else "sdpa")
    outputs = [model(part, use_cache=False).logits for part in ids.split(LENGTHS, 1)]
    losses = [loss_of(o, part) for o, part in zip(outputs, ids.split(LENGTHS, 1), strict=True)]
    return torch.cat(outputs, 1), torch.stack(losses).sum()


def packed(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = packed_forward(model, ids, positions(), LENGTHS)
    parts = zip(logits.split(LENGTHS, 1), ids.split(LENGTHS, 1), strict=True)
    return logits, torch.stack([loss_of(o, part) for o, part in parts]).sum()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def embed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.get_input_embeddings()(ids).detach().requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [
        ("eager", torch.float32, 1e-5),
        ("sdpa", torch.float32, 1e-5),
        (DOCUMENTS, torch.float32, 1e-5),
        ("sdpa", torch.float64, 1e-12),
        (DOCUMENTS, torch.float64, 1e-12),
    ],
)
def test_packed_equals_unpacked(
    make_model: ModelMaker, kind: str, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    register()
    model, ids = make_model(kind).to(dtype).eval(), tokens()
    wanted_logits, wanted_loss = unpacked(model, ids)
    wanted = gradients(model, wanted_loss)
    model.set_attn_implementation(attention)
    logits, loss = packed(model, ids)
    found = gradients(model, loss)
    assert (logits - wanted_logits).abs().max() <= tolerance * wanted_logits.abs().max()
    assert abs(loss - wanted_loss) <= tolerance * wanted_loss
    assert found.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    # Gemma's norms are float32 inside, whatever the model is
    tolerance = max(tolerance, 1e-6) if kind == "gemma" else tolerance
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa", DOCUMENTS])
def test_changing_a_document_leaves_the_others_bit_equal(
    make_model: ModelMaker, kind: str, attention: str
) -> None:
    register()
    model, ids = make_model(kind).eval(), tokens()
    model.set_attn_implementation(attention)
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 1) % VOCABULARY
    with torch.no_grad():
        first, second = packed(model, ids)[0], packed(model, other)[0]
    assert torch.equal(first[:, 7:], second[:, 7:])
    assert not torch.equal(first[:, :7], second[:, :7])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa", DOCUMENTS])
def test_no_gradient_reaches_another_document(
    make_model: ModelMaker, kind: str, attention: str
) -> None:
    register()
    model, ids = make_model(kind).eval(), tokens()
    model.set_attn_implementation(attention)
    inputs = embed(model, ids)
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: inputs)
    logits = packed_forward(model, ids, positions(), LENGTHS)
    hook.remove()
    loss_of(logits[:, 8:20], ids[:, 8:20]).backward()
    assert inputs.grad is not None
    assert torch.count_nonzero(inputs.grad[0, :8]) == 0
    assert torch.count_nonzero(inputs.grad[0, 20:]) == 0
    assert torch.count_nonzero(inputs.grad[0, 8:20]) > 0


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_traps_of_transformers_are_real(
    make_model: ModelMaker, kind: str, attention: str
) -> None:
    model, ids = make_model(kind).eval(), tokens()
    model.set_attn_implementation(attention)
    traps: list[dict[str, Any]] = [
        {"position_ids": positions()},
        {"position_ids": positions(), "use_cache": False, "attention_mask": torch.ones_like(ids)},
        {"use_cache": False},
    ]
    with torch.no_grad():
        wanted = unpacked(model, ids)[0]
        model.set_attn_implementation(attention)
        for trap in traps:
            wrong = (model(ids, **trap).logits - wanted).abs().max()
            assert wrong > 1e-2, (trap.keys(), wrong)
        right = model(ids, position_ids=positions(), use_cache=False).logits
    assert (right - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_mask": torch.ones(1, 24, dtype=torch.long)}, "mask"),
        ({"use_cache": True}, "cache"),
        ({"position_ids": None}, "need position_ids"),
        ({"position_ids": torch.arange(24)[None]}, "do not restart"),
        ({"position_ids": positions()[:, :-1]}, "do not restart"),
        ({"position_ids": positions().roll(1, 1)}, "do not restart"),
        ({"document_lengths": (8, 12, 4)}, "do not restart"),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", DOCUMENTS])
def test_the_traps_are_refused(
    make_model: ModelMaker, attention: str, change: dict[str, Any], words: str
) -> None:
    register()
    model = make_model("llama")
    model.set_attn_implementation(attention)
    arguments: dict[str, Any] = {
        "input_ids": tokens(),
        "position_ids": positions(),
        "document_lengths": LENGTHS,
    }
    with pytest.raises(PackingError, match=words):
        packed_forward(model, **(arguments | change))


def test_logits_to_keep_are_those_positions(make_model: ModelMaker) -> None:
    model, ids = make_model("llama").eval(), tokens()
    keep = torch.tensor([3, 9, 20])
    everything = packed_forward(model, ids, positions(), LENGTHS)
    some = packed_forward(model, ids, positions(), LENGTHS, logits_to_keep=keep)
    torch.testing.assert_close(some, everything[:, keep])


def test_our_attention_is_refused_outside_packed_forward(make_model: ModelMaker) -> None:
    register()
    model = make_model("llama")
    model.set_attn_implementation(DOCUMENTS)
    with pytest.raises(PackingError, match="packed_forward"):
        model(tokens(), use_cache=False)


def test_our_attention_checks_what_it_is_given() -> None:
    heads = torch.zeros(1, 2, 6, 4)

    def call(**changes: Any) -> None:
        arguments = {"attention_mask": None, "document_lengths": (2, 4)} | changes
        document_attention(None, heads, heads, heads, **arguments)

    call()
    call(sliding_window=4)
    with pytest.raises(PackingError, match="sum to 5"):
        call(document_lengths=(2, 3))
    with pytest.raises(PackingError, match="no attention mask"):
        call(attention_mask=torch.zeros(1, 1, 6, 6))
    with pytest.raises(PackingError, match="sliding window"):
        call(sliding_window=3)
    with pytest.raises(PackingError, match="soft cap"):
        call(softcap=50.0)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_is_our_attention_on_cpu(make_model: ModelMaker, kind: str) -> None:
    model = make_model(kind).train()
    assert choose_attention(model, "auto", "cpu", 32) == DOCUMENTS
    assert model.config._attn_implementation == DOCUMENTS
    assert leak(model) <= 1e-5
    assert model.training


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_named_attention_is_taken(make_model: ModelMaker, name: str) -> None:
    assert choose_attention(make_model("qwen2"), name, "cpu", 32) == name


def test_documents_is_the_short_name(make_model: ModelMaker) -> None:
    assert choose_attention(make_model("llama"), "documents", "cpu", 32) == DOCUMENTS


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_sliding_windows_go_to_transformers(make_model: ModelMaker, kind: str) -> None:
    model = make_model(kind, sliding_window=16)
    with pytest.raises(PackingError, match=r"window of 16 .* 32: set model\.attention to sdpa"):
        choose_attention(model, "documents", "cpu", 32)
    assert choose_attention(model, "auto", "cpu", 32) == "sdpa"
    assert choose_attention(model, "auto", "cpu", 16) == DOCUMENTS


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_sliding_windows_keep_documents_apart(make_model: ModelMaker, attention: str) -> None:
    model, ids = make_model("mistral", sliding_window=4).eval(), tokens()
    wanted = unpacked(model, ids)[0]
    model.set_attn_implementation(attention)
    assert (packed(model, ids)[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_soft_caps_go_to_eager(make_model: ModelMaker) -> None:
    model = make_model("gemma2", attn_logit_softcapping=2.0)
    with pytest.raises(PackingError, match=r"soft cap.*model\.attention"):
        choose_attention(model, "documents", "cpu", 8)
    with pytest.raises(PackingError, match=r"model\.attention"):
        choose_attention(model, "sdpa", "cpu", 8)
    assert choose_attention(model, "auto", "cpu", 8) == "eager"


def test_an_unknown_attention_is_one_line(make_model: ModelMaker) -> None:
    with pytest.raises(PackingError, match=r"flashy.*model\.attention") as error:
        choose_attention(make_model("llama"), "flashy", "cpu", 8)
    assert "\n" not in str(error.value)


def test_a_leak_is_found_whatever_the_weights(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even freshly initialised, where attention hardly moves the logits."""
    from mixgym.envs.learners.models import attention

    def leaky(
        model: Any, ids: Any, position_ids: Any, *_: Any, logits_to_keep: Any = 0, **__: Any
    ) -> Any:
        return model(ids, position_ids=position_ids, logits_to_keep=logits_to_keep).logits

    monkeypatch.setattr(attention, "packed_forward", leaky)
    for kind in KINDS:
        model = make_model(kind, initializer_range=0.02)
        with pytest.raises(PackingError, match="differ from unpacked"):
            choose_attention(model, "sdpa", "cpu", 8)


def test_a_model_that_ignores_positions_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(PackingError, match="does not keep packed documents apart"):
        choose_attention(MambaForCausalLM(config), "auto", "cpu", 8)


# what layers ask for


def made(config: str, **changes: Any) -> Any:
    """A seeded model of two small layers, by the name of its configuration."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "initializer_range": 0.1,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        found = getattr(transformers, config)(**(sizes | changes))
        return transformers.AutoModelForCausalLM.from_config(found).eval()


EXPERTS = {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 2}


@pytest.mark.parametrize("window", [8, 128])
def test_learned_sinks_are_computed_with_their_gradient(window: int) -> None:
    """Against the model's own attention, one document at a time."""
    model, ids = made("GptOssConfig", sliding_window=window, **EXPERTS), tokens()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.copy_(torch.linspace(-1, 2, 4))
    wanted_logits, wanted_loss = unpacked(model, ids)
    wanted = gradients(model, wanted_loss)
    assert choose_attention(model, "auto", "cpu", 24) == DOCUMENTS
    logits, loss = packed(model, ids)
    found = gradients(model, loss)
    assert (logits - wanted_logits).abs().max() <= 1e-5 * wanted_logits.abs().max()
    assert found.keys() == wanted.keys()
    for name in wanted:
        largest = wanted[name].abs().max().clamp_min(1e-3)
        assert (found[name] - wanted[name]).abs().max() <= 1e-4 * largest, name
    assert found["model.layers.0.self_attn.sinks"].abs().min() > 0


def test_a_sink_takes_its_share_by_hand() -> None:
    """Two tokens whose scores are 0: softmax over (0, b) and (0, 0, b), the sink worth nothing."""
    heads = torch.zeros(1, 2, 2, 4)
    value = torch.tensor([3.0, 5.0])[None, None, :, None].expand(1, 2, 2, 4)
    sinks = torch.tensor([0.0, 1.0986123])  # log 1, log 3
    found, _ = document_attention(
        None, heads, heads, value, None, document_lengths=(2,), s_aux=sinks
    )
    wanted = torch.tensor([[3 / 2, 3 / 4], [8 / 3, 8 / 5]])  # [tokens, heads]
    torch.testing.assert_close(found[0, :, :, 0], wanted)


def test_what_is_not_known_is_refused_by_name() -> None:
    heads = torch.zeros(1, 2, 6, 4)

    def call(**more: Any) -> None:
        document_attention(None, heads, heads, heads, None, document_lengths=(2, 4), **more)

    call(position_bias=None, indices=None, cu_seqlens=False, position_ids=positions())
    call(is_causal=True, use_cache=False, output_attentions=True)
    for name in ("position_bias", "head_mask", "indices", "sinks", "block_indices", "new_thing"):
        with pytest.raises(PackingError, match=f"passes {name} to its attention"):
            call(**{name: torch.zeros(2)})
    with pytest.raises(PackingError, match="looks ahead"):
        call(is_causal=False)
    with pytest.raises(PackingError, match=r"s_aux of shape \(3,\) for 2 heads"):
        call(s_aux=torch.zeros(3))
    ahead = torch.nn.Module()
    ahead.is_causal = False  # type: ignore[assignment]
    with pytest.raises(PackingError, match="Module looks ahead"):
        document_attention(ahead, heads, heads, heads, None, document_lengths=(2, 4))


def test_chunks_are_left_to_the_model() -> None:
    """A mask that our attention never sees: only documents longer than a chunk show it."""
    model = made("Llama4TextConfig", attention_chunk_size=16, intermediate_size_mlp=64, **EXPERTS)
    assert choose_attention(model, "auto", "cpu", 16) == DOCUMENTS
    with pytest.raises(PackingError, match="differ from those of the model's own"):
        choose_attention(model, "documents", "cpu", 17)
    with pytest.warns(UserWarning, match=f"is used and not {DOCUMENTS}: logits differ"):
        chosen = choose_attention(model, "auto", "cpu", 32)
    assert chosen != DOCUMENTS


def test_documents_whose_scores_no_memory_holds_are_compared_with_sdpa(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eager goes to 16 tokens, inside a chunk; what is behind shows in the rest."""
    monkeypatch.setattr("mixgym.envs.learners.models.attention.EAGER_SCORES", 4 * 16**2)
    model = made("Llama4TextConfig", attention_chunk_size=16, intermediate_size_mlp=64, **EXPERTS)
    with pytest.raises(PackingError, match="differ from those of the model's own"):
        choose_attention(model, "documents", "cpu", 32)
    assert choose_attention(made("LlamaConfig"), "documents", "cpu", 32) == DOCUMENTS
    sinks = made("GptOssConfig", **EXPERTS)  # which has no SDPA to compare with
    assert choose_attention(sinks, "documents", "cpu", 32) == DOCUMENTS


def test_a_small_leak_is_found() -> None:
    """A convolution in front of everything, of so little weight that logits move by 1e-4."""
    model = made("LlamaConfig")
    embed = model.model.embed_tokens

    def leaky(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + size * output.roll(1, dims=1)

    embed.register_forward_hook(leaky)
    size = 1e-4
    assert 1e-5 < leak(model) < 1e-3
    with pytest.raises(PackingError, match=r"documents apart .*choose another model"):
        choose_attention(model, "auto", "cpu", 8)
    size = 0.0
    assert choose_attention(model, "auto", "cpu", 8) == DOCUMENTS
    assert leak(model) < 1e-6


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
        (
            "FalconH1Config",
            {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64},
        ),
    ],
)
def test_hybrid_models_are_refused(config: str, changes: dict[str, Any]) -> None:
    with pytest.raises(PackingError, match=r"a recurrent state.*choose another model$"):
        choose_attention(made(config, **changes), "auto", "cpu", 8)


def test_alibi_that_cannot_restart_is_refused() -> None:
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    with pytest.raises(PackingError, match="does not keep packed documents apart"):
        choose_attention(transformers.BloomForCausalLM(config), "auto", "cpu", 8)


# implementations that fail


def stand_in(raises: Callable[[], bool]) -> str:
    """Register an attention that computes what SDPA does, unless it raises."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if raises():
            raise RuntimeError("only half precision is supported")
        return sdpa_attention_forward(module, query, *rest, **named)

    AttentionInterface.register("stand_in", attention)
    AttentionMaskInterface.register("stand_in", sdpa_mask)
    return "stand_in"


def test_a_kernel_for_half_precision_is_tried_as_it_will_run(make_model: ModelMaker) -> None:
    name = stand_in(lambda: not torch.is_autocast_enabled("cpu"))
    model = make_model("llama")
    assert choose_attention(model, name, "cpu", 32, bf16=True) == name
    with pytest.raises(PackingError, match=r"stand_in: only half precision.*model\.attention"):
        choose_attention(model, name, "cpu", 32)


def test_a_kernel_that_fails_is_named_and_passed_over(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixgym.envs.learners.models import attention

    name = stand_in(lambda: True)
    monkeypatch.setattr(attention, "flash", lambda: [name])
    for bf16 in (False, True):
        with pytest.warns(UserWarning, match="sdpa is used and not stand_in: only half"):
            assert choose_attention(make_model("llama"), "auto", "cuda", 32, bf16=bf16) == "sdpa"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said_where_nothing_is_wrong(make_model: ModelMaker, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bf16 in (False, True):
            assert choose_attention(make_model(kind), "auto", "cpu", 32, bf16=bf16) == DOCUMENTS


def test_weights_that_are_not_finite_are_named(make_model: ModelMaker) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(PackingError, match="not finite: are the model's weights sound"):
        choose_attention(model, "auto", "cpu", 8)


def test_what_a_model_decodes_with(make_model: ModelMaker) -> None:
    assert own_attention(make_model("llama"), 16) == "sdpa"
    assert own_attention(make_model("gemma2", attn_logit_softcapping=2.0), 16) == "eager"
    model = made("GptOssConfig", **EXPERTS)
    choose_attention(model, "auto", "cpu", 16)
    assert own_attention(model, 16) == "eager"
    assert model.config._attn_implementation == DOCUMENTS


# positions that are scaled by row

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 8.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("rope", "limit"), [(LONGROPE, 16), (DYNAMIC, 128)], ids=["longrope", "dynamic"]
)
def test_positions_that_a_long_document_scales_are_refused_beyond_their_limit(
    rope: dict[str, Any], limit: int
) -> None:
    model = made("LlamaConfig", rope_parameters=rope)
    assert choose_attention(model, "auto", "cpu", limit) == DOCUMENTS
    with pytest.raises(PackingError, match=f"more than {limit} tokens.*max_length to {limit} or"):
        choose_attention(model, "auto", "cpu", limit + 1)


def test_why_they_are_refused() -> None:
    """A short document has other logits beside one that is beyond the limit."""
    model = made("LlamaConfig", rope_parameters=LONGROPE)
    choose_attention(model, "documents", "cpu", 16)
    ids = torch.arange(28)[None] % VOCABULARY
    positions = torch.cat([torch.arange(8), torch.arange(20)])[None]
    with torch.no_grad():
        beside = packed_forward(model, ids, positions, (8, 20))[:, :8]
        alone = packed_forward(model, ids[:, :8], positions[:, :8], (8,))
    assert (beside - alone).abs().max() > 1e-3 * alone.abs().max()


def test_a_short_document_is_compared_beside_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the configuration says of its positions."""
    model = made("LlamaConfig", rope_parameters=LONGROPE)
    import mixgym.envs.learners.models.attention as attention

    monkeypatch.setattr(attention, "check_scale", lambda *_: None)
    with pytest.raises(PackingError, match="differ from those of the model's own attention"):
        choose_attention(model, "auto", "cpu", 40)


def test_scales_by_layer_type_are_seen() -> None:
    kinds = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
    model = made("LlamaConfig")
    model.config.rope_parameters = kinds
    with pytest.raises(PackingError, match="longrope"):
        choose_attention(model, "auto", "cpu", 17)
