"""Sequence parallelism: several ranks share a pack, each a stretch of its tokens (Ulysses).

Between attention layers a rank holds ``tokens / degree`` positions of all heads. For attention the
ranks exchange, so that each holds all positions of ``heads / degree`` heads, and exchange back
(DeepSpeed-Ulysses, arXiv 2309.14509). All groups of ranks are made once; which degree a step uses
is free. What a pack is worth in the loss, and sums of gradients, are somebody else's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import ConfigError, PackingError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Shard:
    """This rank's part in a pack.

    Attributes:
        degree: ranks that share the pack.
        position: of this rank among them.
        group: their process group (None for degree 1).
    """

    degree: int = 1
    position: int = 0
    group: Any = None


WHOLE = Shard()


def make_shards(degrees: Sequence[int]) -> dict[int, Shard]:
    """This rank's shard for every degree; ranks ``d * i ... d * i + d - 1`` share packs.

    A collective: every rank has to call it, once, with the same degrees.

    Raises:
        ConfigError: for a degree that does not divide the number of processes.
    """
    import torch.distributed as dist

    started = dist.is_available() and dist.is_initialized()
    world = dist.get_world_size() if started else 1
    rank = dist.get_rank() if started else 0
    shards = {}
    for degree in sorted(set(degrees)):
        if degree < 1 or world % degree:
            raise ConfigError(
                f"sequence parallelism of degree {degree} needs a number of processes that it "
                f"divides, not {world}: start with torchrun --nproc_per_node, or lower the degree"
            )
        shards[degree] = WHOLE
        for first in range(0, world if degree > 1 else 0, degree):
            # every rank makes every group, in the same order
            group = dist.new_group(list(range(first, first + degree)))
            if first <= rank < first + degree:
                shards[degree] = Shard(degree, rank - first, group)
    return shards


def check_heads(config: Any, degree: int) -> None:
    """Refuse a degree that the attention heads of a model cannot be dealt to.

    Key-value heads fewer than the degree are repeated, where each then goes to as many ranks.

    Args:
        config: of a model of transformers.
        degree: ranks that share a pack.

    Raises:
        ConfigError: if heads do not divide, naming both numbers.
    """
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    if heads % degree:
        raise ConfigError(
            f"the model has {heads} attention heads, which {degree} ranks cannot share evenly: "
            "choose a degree of sequence parallelism that divides them"
        )
    if shared % degree and degree % shared:
        raise ConfigError(
            f"the model has {shared} key-value heads, which {degree} ranks can neither share "
            "evenly nor repeat evenly: choose another degree of sequence parallelism"
        )


def to_heads(states: "torch.Tensor", shard: Shard) -> "torch.Tensor":
    """From all heads of this rank's positions to this rank's heads of all positions.

    Args:
        states: [1, heads, tokens / degree, width].
        shard: of this rank.

    Returns:
        [1, heads / degree, tokens, width]; key-value heads fewer than the degree are repeated.

    Raises:
        PackingError: if the heads can be neither dealt nor repeated evenly.
    """
    heads = states.shape[1]
    if heads < shard.degree and shard.degree % heads == 0:
        states = states.repeat_interleave(shard.degree // heads, dim=1)
    elif heads % shard.degree:
        raise PackingError(
            f"{heads} attention heads cannot be dealt to {shard.degree} ranks: choose a degree of "
            "sequence parallelism that divides them"
        )
    # [h, t / n, w] here, with n ranks: block j of h / n heads goes to rank j, and what comes from
    # rank i are positions i t/n ... (i + 1) t/n of our heads, so that laid in order they are all t
    _, heads, size, width = states.shape
    dealt = states.reshape(shard.degree, heads // shard.degree, size, width)
    got = _exchange(dealt, shard.group)
    return got.transpose(0, 1).reshape(1, heads // shard.degree, shard.degree * size, width)


def to_tokens(states: "torch.Tensor", shard: Shard) -> "torch.Tensor":
    """Back from this rank's heads of all positions to all heads of this rank's positions.

    Args:
        states: [1, heads / degree, tokens, width].
        shard: of this rank.

    Returns:
        [1, heads, tokens / degree, width].
    """
    # the same exchange with the parts of positions and heads changed: block j of t / n positions
    # goes to rank j, and what comes from rank i are heads i h ... (i + 1) h of our positions
    _, heads, tokens, width = states.shape
    size = tokens // shard.degree
    dealt = states.reshape(heads, shard.degree, size, width).transpose(0, 1)
    return _exchange(dealt, shard.group).reshape(1, heads * shard.degree, size, width)


def _exchange(states: "torch.Tensor", group: Any) -> "torch.Tensor":
    """Rank i's ``states[j]`` becomes rank j's ``result[i]``: its own inverse, and its gradient.

    It permutes entries, R = P S with P symmetric; so P P = 1, and the gradient is P^T G = P G.
    """
    return _exchange_function().apply(states, group)


@cache
def _exchange_function() -> Any:
    """The autograd function; a class of torch, made when torch is wanted."""
    import torch
    import torch.distributed as dist

    class Exchange(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, states: torch.Tensor, group: Any) -> torch.Tensor:
            context.group = group
            # contiguous first: a buffer like a transposed tensor would keep its strides, and the
            # gradients would be wrong while the loss is right
            sent = states.contiguous()
            received = torch.empty_like(sent)
            dist.all_to_all_single(received, sent, group=group)
            return received

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
            return _exchange(gradients[0], context.group), None

    return Exchange
