"""Seconds of training, from the shape of a model and the rates of the hardware.

A micro-step of a replica costs its dense work, its attention, what checkpointing computes again,
the exchange of sequence parallelism, and a fixed part. Rates are stated, or fitted to a profile
(:mod:`mixgym.envs.packing.costs.rate_fitting`); nothing is measured here.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from mixgym.envs.arrays import FloatArray, IntArray
from mixgym.envs.packing.grouping.groups import Group
from mixgym.envs.packing.layout import Layout

BACKWARD = 2.0  # dense work of the backward pass, in forward passes
_ATTENTION_BACKWARD = 2.5  # likewise of flash attention, which computes the scores again

Numbers = IntArray | FloatArray | int | float


@dataclass(frozen=True)
class ModelShape:
    """What a causal LM computes and exchanges for a token.

    Attributes:
        layers: transformer layers.
        heads, key_value_heads: of attention.
        key_width, value_width: of one head.
        layer_flops: forward of all layers for one token, attention scores apart.
        head_flops: forward of the output layer for one token.
        expert_width: elements per token and layer that expert parallelism sends (0 for a dense
            model); they are exchanged over all devices, whatever the degree.
        element_bytes: of activations.
    """

    layers: int
    heads: int
    key_value_heads: int
    key_width: int
    value_width: int
    layer_flops: float
    head_flops: float
    expert_width: float = 0.0
    element_bytes: int = 2

    @property
    def attention_flops(self) -> float:
        """Forward of the scores and their use, for a squared token (the causal half counted)."""
        return self.layers * self.heads * float(self.key_width + self.value_width)

    def exchanged_width(self, degree: Numbers) -> FloatArray:
        """Elements per token and layer in the all-to-alls of one forward pass.

        Key-value heads fewer than the degree are repeated, so that every device has one.
        """
        repeat = np.maximum(1.0, np.asarray(degree, np.float64) / self.key_value_heads)
        widths = self.key_width + self.value_width
        return widths * (self.heads + self.key_value_heads * repeat)


@dataclass(frozen=True)
class Hardware:
    """Rates of the devices and of the links between them.

    Attributes:
        devices: in all.
        devices_per_node: that share the fast link.
        dense_rate, attention_rate: FLOP/s of a device.
        link_rate, node_link_rate: bytes/s of a device in an all-to-all inside a node, and across
            nodes.
        fixed_seconds: of every micro-step.
        memory: (tokens on a device, share of layers that have to be checkpointed), ascending;
            more tokens than the last entry do not fit.
    """

    devices: int
    devices_per_node: int
    dense_rate: float
    attention_rate: float
    link_rate: float
    node_link_rate: float
    fixed_seconds: float
    memory: tuple[tuple[int, float], ...] = ((2**62, 0.0),)

    def checkpointed(self, tokens: int, layers: int) -> int | None:
        """Layers to checkpoint with that many tokens on a device; None if they do not fit."""
        for fits, share in self.memory:
            if tokens <= fits:
                return math.ceil(share * layers - 1e-9)
        return None


@dataclass(frozen=True)
class Seconds:
    """Where the time of micro-steps goes; arrays of one shape.

    Attributes:
        dense, attention, recompute, communication, fixed: seconds.
    """

    dense: FloatArray
    attention: FloatArray
    recompute: FloatArray
    communication: FloatArray
    fixed: FloatArray

    @property
    def total(self) -> FloatArray:
        """Their sum."""
        return self.dense + self.attention + self.recompute + self.communication + self.fixed


@dataclass(frozen=True)
class CostModel:
    """Seconds of micro-steps of one model on one machine.

    Example:
        >>> from mixgym.envs.packing.costs.descriptions import HARDWARE, MODELS
        >>> cost = CostModel(MODELS["llama-3.1-8b"], HARDWARE["32xh100"])
        >>> group = Group(131072, degree=8, checkpointed=28)
        >>> round(float(cost.micro_step(131072, 131072**2, group).total), 1)
        10.1
    """

    model: ModelShape
    hardware: Hardware

    def micro_step(
        self, tokens: Numbers, work: Numbers, group: Group | tuple[IntArray, IntArray]
    ) -> Seconds:
        """Forward and backward of a pack on one replica.

        Args:
            tokens: with padding.
            work: sum of squared lengths.
            group: or (degrees, checkpointed layers), each [n].
        """
        degree, layers = (group.degree, group.checkpointed) if isinstance(group, Group) else group
        model, rates = self.model, self.hardware
        terms = cost_terms(model, tokens, work, degree, layers)
        crossing = np.asarray(degree) > rates.devices_per_node
        link = np.where(crossing, rates.node_link_rate, rates.link_rate)
        experts = terms.expert_bytes / rates.node_link_rate
        return Seconds(
            terms.dense / rates.dense_rate,
            terms.attention / rates.attention_rate,
            terms.dense_again / rates.dense_rate + terms.attention_again / rates.attention_rate,
            terms.exchanged_bytes / link + experts,
            np.full(np.shape(terms.dense), rates.fixed_seconds),
        )

    def units(self, layout: Layout) -> FloatArray:
        """float64[units], seconds of every unit of a layout."""
        return self._split(layout).total

    def seconds(self, layout: Layout) -> float:
        """Seconds of the layout, replicas waiting for each other after every micro-step."""
        return float(layout.largest(self.units(layout)).sum())

    def seconds_without_waiting(self, layout: Layout) -> float:
        """The same work if it could be spread evenly in each micro-step: a lower bound."""
        return float((layout.per_row(self.units(layout)) / layout.replicas).sum())

    def parts(self, layout: Layout) -> dict[str, float]:
        """Seconds by kind, the mean over the devices, and waiting."""
        split = self._split(layout)
        devices = layout.replicas[layout.row]
        kinds = ("dense", "attention", "recompute", "communication", "fixed")
        found = {kind: float((getattr(split, kind) / devices).sum()) for kind in kinds}
        return found | {"waiting": self.seconds(layout) - sum(found.values())}

    def with_link_rate(self, rate: float) -> "CostModel":
        """The same machine with another link inside its nodes (bytes/s); none across is faster."""
        across = min(rate, self.hardware.node_link_rate)
        hardware = replace(self.hardware, link_rate=rate, node_link_rate=across)
        return replace(self, hardware=hardware)

    def _split(self, layout: Layout) -> Seconds:
        groups = (layout.degrees[layout.row], layout.checkpointed[layout.row])
        return self.micro_step(layout.slots, layout.work, groups)


@dataclass(frozen=True)
class CostTerms:
    """Work and bytes of one device in a micro-step, before any rate; arrays of one shape."""

    dense: FloatArray
    attention: FloatArray
    dense_again: FloatArray
    attention_again: FloatArray
    exchanged_bytes: FloatArray
    expert_bytes: FloatArray


def cost_terms(
    model: ModelShape, tokens: Numbers, work: Numbers, degree: Numbers, checkpointed: Numbers
) -> CostTerms:
    """What a micro-step computes and sends, per device; arguments broadcast.

    Args:
        model: the shape.
        tokens: of the pack, with padding.
        work: sum of squared lengths.
        degree: devices that share the pack.
        checkpointed: layers whose forward pass is computed again.
    """
    tokens, work, degree, layers, _ = np.broadcast_arrays(
        *(np.asarray(value, np.float64) for value in (tokens, work, degree, checkpointed, 0.0))
    )
    share = layers / model.layers
    mine, squares = tokens / degree, work / degree
    passes = 2 * model.layers + layers  # forward, backward, and forward again
    sent = model.element_bytes * mine * passes
    return CostTerms(
        mine * (1 + BACKWARD) * (model.layer_flops + model.head_flops),
        squares * model.attention_flops * (1 + _ATTENTION_BACKWARD),
        mine * share * model.layer_flops,
        squares * share * model.attention_flops,
        sent * model.exchanged_width(degree) * (degree - 1) / degree,
        sent * model.expert_width,
    )


def exchanged_bytes(model: ModelShape, tokens: int, group: Group) -> float:
    """Bytes that a device sends for sequence parallelism in a micro-step of ``tokens`` tokens."""
    return float(cost_terms(model, tokens, 0, group.degree, group.checkpointed).exchanged_bytes)
