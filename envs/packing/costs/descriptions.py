"""Stated models and machines, so that a run can be sized before it is rented.

Rates marked as fitted come from published times per iteration of Llama-3.1-8B on 32 H100 (HBP,
arXiv 2503.07680, tables 3 and 4): see :data:`PUBLISHED_PROFILE`; the tests fit them again.
"""

from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.packing.costs.cost_model import Hardware, ModelShape
from mixgym.envs.packing.costs.rate_fitting import ProfilePoint
from mixgym.envs.packing.grouping.groups import Group

K = 1024


def dense_model(
    *,
    layers: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    feed_forward: int,
    vocabulary: int,
    head_dim: int | None = None,
    element_bytes: int = 2,
) -> ModelShape:
    """The shape of a decoder with grouped-query attention and a gated feed-forward layer."""
    width = head_dim or hidden // heads
    attention = 2 * hidden * width * heads + 2 * hidden * width * key_value_heads
    return ModelShape(
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        key_width=width,
        value_width=width,
        layer_flops=2.0 * layers * (attention + 3 * hidden * feed_forward),
        head_flops=2.0 * hidden * vocabulary,
        element_bytes=element_bytes,
    )


def model_of(config: Any, element_bytes: int = 4) -> ModelShape:
    """The shape of a model of transformers, from its configuration.

    Args:
        config: with the attributes of a Llama configuration; those of GPT-2 are known as well.
        element_bytes: of activations.

    Raises:
        ConfigError: if the configuration does not say what the model looks like.
    """
    text = config.get_text_config()

    def read(*names: str) -> Any:
        return next((found for n in names if (found := getattr(text, n, None)) is not None), None)

    hidden, heads = read("hidden_size", "n_embd"), read("num_attention_heads", "n_head")
    layers, vocabulary = read("num_hidden_layers", "n_layer"), read("vocab_size")
    if None in (hidden, heads, layers, vocabulary):
        raise ConfigError(
            f"the configuration of {type(config).__name__} lacks hidden size, heads, layers or "
            "vocabulary: its cost is unknown; state packing.groups instead of auto"
        )
    return dense_model(
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_value_heads=read("num_key_value_heads") or heads,
        feed_forward=read("intermediate_size", "n_inner") or 4 * hidden,
        vocabulary=vocabulary,
        head_dim=read("head_dim"),
        element_bytes=element_bytes,
    )


def _deepseek_v2() -> ModelShape:
    """DeepSeek-V2 (arXiv 2405.04434): 21B of 236B parameters act on a token.

    Latent attention is exchanged after its projection, with as many key-value heads as heads. The
    6 experts of a token stand on 3 devices at most (device-limited routing), to which it goes and
    from which it comes back in every layer.
    """
    layers, hidden, heads = 60, 5120, 128
    head = 2.0 * hidden * 102_400
    active = 21e9 - 2 * hidden * 102_400  # without embedding and output layer
    return ModelShape(
        layers=layers,
        heads=heads,
        key_value_heads=heads,
        key_width=192,
        value_width=128,
        layer_flops=2.0 * active,
        head_flops=head,
        expert_width=2.0 * 3 * hidden,
    )


MODELS: dict[str, ModelShape] = {
    "llama-3.1-8b": dense_model(
        layers=32, hidden=4096, heads=32, key_value_heads=8, feed_forward=14336, vocabulary=128256
    ),
    "llama-3.1-70b": dense_model(
        layers=80, hidden=8192, heads=64, key_value_heads=8, feed_forward=28672, vocabulary=128256
    ),
    "qwen2.5-32b": dense_model(
        layers=64, hidden=5120, heads=40, key_value_heads=8, feed_forward=27648, vocabulary=152064
    ),
    "deepseek-v2": _deepseek_v2(),
}

_H100_MEMORY = ((2 * K, 0.0), (4 * K, 8 / 32), (8 * K, 23 / 32), (16 * K, 28 / 32))
"""Published pairs for 8B parameters under ZeRO on 80 GB: tokens per device, layers of 32."""

HARDWARE: dict[str, Hardware] = {
    # one core of a server CPU in float32, from profiles of models of 0.1 and 5 million parameters;
    # processes on one machine over gloo
    "cpu-core": Hardware(
        devices=1,
        devices_per_node=64,
        dense_rate=60e9,
        attention_rate=45e9,
        link_rate=1e9,
        node_link_rate=0.1e9,
        fixed_seconds=0.005,
    ),
    "32xh100": Hardware(
        devices=32,
        devices_per_node=8,
        dense_rate=458e12,  # fitted, as are attention, node link and fixed seconds
        attention_rate=319e12,
        link_rate=200e9,  # assumed: the published times do not identify it
        node_link_rate=49e9,
        fixed_seconds=0.204,
        memory=_H100_MEMORY,
    ),
    "256xh100": Hardware(
        devices=256,
        devices_per_node=8,
        dense_rate=458e12,
        attention_rate=319e12,
        link_rate=200e9,
        node_link_rate=49e9,
        fixed_seconds=0.204,
        memory=_H100_MEMORY,
    ),
    "8xa100": Hardware(
        devices=8,
        devices_per_node=8,
        dense_rate=312e12 * 0.46,  # peak times the share of the peak that the H100 fit has
        attention_rate=312e12 * 0.32,
        link_rate=120e9,
        node_link_rate=20e9,
        fixed_seconds=0.204,
        memory=_H100_MEMORY,
    ),
}

PUBLISHED_PROFILE: tuple[ProfilePoint, ...] = (
    *(
        ProfilePoint(
            tokens=length,
            work=length**2,
            group=Group(length, degree, layers),
            seconds=seconds,
            micro_steps=degree * 16 * K // length,
        )
        for length, degree, layers, seconds in (
            (32 * K, 2, 28, 4.45),
            (32 * K, 4, 23, 4.35),
            (32 * K, 8, 8, 4.12),
            (64 * K, 4, 28, 6.3),
            (64 * K, 8, 24, 6.2),
            (128 * K, 8, 29, 10.2),
            (128 * K, 16, 23, 10.5),
        )
    ),
    ProfilePoint(tokens=900, work=900**2, group=Group(128 * K, 8, 28), seconds=0.218),
)
"""Llama-3.1-8B on 32 H100: one full-length document per pack, 512K tokens per iteration, and
a micro-step of unpacked chat documents."""
