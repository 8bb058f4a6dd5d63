"""Which part of every step is this rank's, and which layers are recomputed in it."""

import hashlib
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.parallel.sequence_parallel import Shard, check_heads, make_shards
from mixgym.envs.ranks import check_agreement, rank, world_size


class DataParallel:
    """This rank among the processes that train one model.

    Args:
        config: of the model; degrees that its heads allow are made ready, once.
    """

    def __init__(self, config: Any) -> None:
        self.world = world_size()
        self.rank = rank()
        self._shards = make_shards([n for n in _divisors(self.world) if _allowed(config, n)])
        self._config = config

    def mine(self, packs: tuple[Pack, ...]) -> tuple[tuple[Pack, ...], Shard]:
        """The packs of a global batch that this rank trains, and its part in each.

        Ranks of one replica have the same packs; an idle replica has none.

        Raises:
            ConfigError: for a degree that processes or heads do not allow.
        """
        degree = packs[0].sequence_parallel
        if degree not in self._shards:
            check_heads(self._config, degree)
            make_shards([degree])  # says what is wrong with it
        if any(pack.sequence_parallel != degree for pack in packs):
            raise ConfigError("packs of one step have different degrees of sequence parallelism")
        replica, replicas = self.rank // degree, self.world // degree
        return packs[replica::replicas], self._shards[degree]

    def check_plan(self, plan: IntervalPlan) -> None:
        """Refuse to train where ranks have planned differently.

        Raises:
            RunError: on every rank.
        """
        if self.world > 1:
            check_agreement("the plan of an interval", _digest(plan))

    def check_weights(self, model: Any) -> None:
        """Refuse to train where ranks start from different weights.

        Raises:
            RunError: on every rank.
        """
        if self.world > 1:
            total = sum(float(tensor.detach().double().sum()) for tensor in model.parameters())
            check_agreement("the sum of all weights", repr(total))


def recompute_layers(model: Any, count: int) -> None:
    """Let the first ``count`` layers recompute their activations, and no others.

    Raises:
        ConfigError: if the model cannot, or has fewer layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if count > len(layers):
        raise ConfigError(
            f"{count} layers are to be recomputed, and {type(model).__name__} has {len(layers)} "
            "that can be: lower checkpointed in data.packing.groups"
        )
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index < count


def can_recompute(model: Any) -> None:
    """Make the model ready for :func:`recompute_layers` (transformers is renaming the method)."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    # the other kind of checkpointing would draw dropout twice
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _digest(plan: IntervalPlan) -> str:
    digest = hashlib.sha256()
    for step in plan.steps:
        for pack in step:
            digest.update(pack.rows.tobytes())
            digest.update(f"{pack.sequence_parallel} {pack.checkpointed_layers}".encode())
            digest.update(f"{pack.weight} {pack.normaliser}".encode())
        digest.update(b"step")
    return digest.hexdigest()[:16]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _allowed(config: Any, degree: int) -> bool:
    try:
        check_heads(config, degree)
    except ConfigError:
        return False
    return True
