"""Rotary positions whose scale depends on the longest document of a row."""

from collections.abc import Iterator, Mapping
from typing import Any

from mixgym.envs.errors import PackingError

_SCALED = ("longrope", "dynamic")
"""Kinds that turn all positions of a row otherwise once one document is beyond a limit."""


def check_scale(model: Any, longest: int) -> None:
    """Refuse documents beyond the limit of a model whose positions are scaled by row.

    A short document in a row with such a long one would have other logits than alone. Below the
    limit every row has the same scale.

    Args:
        model: a causal LM of transformers.
        longest: tokens of the longest document there will be.

    Raises:
        PackingError: naming the kind and the limit.
    """
    config = model.config.get_text_config()
    for kind, limit in _limits(config):
        if longest > limit:
            raise PackingError(
                f"{type(model).__name__} does not keep packed documents apart (its rotary "
                f"positions, {kind}, are scaled in rows with a document of more than {limit} "
                f"tokens, for shorter ones too): set data.max_length to {limit} or less"
            )


def _limits(config: Any) -> Iterator[tuple[str, int]]:
    """Kind and limit of every set of rotary positions that is scaled by row."""
    found = getattr(config, "rope_parameters", None) or {}
    sets = [found] if "rope_type" in found else list(found.values())  # one, or one by layer type
    longest = getattr(config, "max_position_embeddings", None)
    for one in sets:
        kind = str(one.get("rope_type")) if isinstance(one, Mapping) else ""
        if not kind.startswith(_SCALED):
            continue
        own = one.get("original_max_position_embeddings") if kind == "longrope" else None
        limit = own or longest
        if limit is not None:
            yield kind, int(limit)
