"""Observations and actions as rows, at the three levels: joint, global, local.

Joint and global agents see the flat joint observation; a local one sees the rows of its own source
(:func:`mixgym.envs.spaces.observations.local_observation`), which is a mixture of one source.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces

from mixgym.envs.spaces.observations import (
    PROGRESS,
    SOURCES,
    STRATA,
    local_size,
    shape_of,
)

Level = Literal["joint", "global", "local"]
LEVELS: tuple[Level, ...] = ("joint", "global", "local")


@dataclass(frozen=True)
class Rows:
    """An observation as rows.

    Attributes:
        progress: float[n, P].
        sources: float[n, K, S].
        strata: float[n, K, G, D].
        source_mask: bool[n, K], sources that may get a weight.
        strata_mask: bool[n, K, G], cells that may get a weight.
    """

    progress: torch.Tensor
    sources: torch.Tensor
    strata: torch.Tensor
    source_mask: torch.Tensor
    strata_mask: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(K, G), padding included."""
        return self.strata.shape[1], self.strata.shape[2]


def split_rows(
    observation: torch.Tensor, sources: int, strata: int, level: Level = "joint"
) -> Rows:
    """Cut flat observations [n, size] into rows (see :mod:`mixgym.envs.spaces.observations`).

    Args:
        observation: of one or several environments.
        sources: K.
        strata: G.
        level: whose observations they are.
    """
    count = len(observation)
    cells_size = sources * strata
    sizes = [len(PROGRESS), sources * len(SOURCES), cells_size * len(STRATA)]
    masks = [cells_size] if level == "local" else [sources, cells_size]
    parts = observation.float().split([*sizes, *masks], dim=1)
    progress, source, stratum, cells = parts[0], parts[1], parts[2], parts[-1]
    mask = cells.amax(1, keepdim=True) if level == "local" else parts[3]
    top = source.view(count, sources, len(SOURCES))
    inner = stratum.view(count, sources, strata, len(STRATA))
    return Rows(progress, top, inner, mask > 0.5, cells.view(count, sources, strata) > 0.5)


def as_local(rows: Rows) -> Rows:
    """Every source as a mixture of its own: n * K rows with one source each."""
    sources = rows.sources.shape[1]
    strata_mask = rows.strata_mask.flatten(0, 1).unsqueeze(1)
    return Rows(
        rows.progress.repeat_interleave(sources, 0),
        rows.sources.flatten(0, 1).unsqueeze(1),
        rows.strata.flatten(0, 1).unsqueeze(1),
        strata_mask.any(-1),
        strata_mask,
    )


def action_mask(rows: Rows, level: Level = "joint") -> torch.Tensor:
    """Float[n, entries]; 1 where an entry of the action has an effect."""
    parts = []
    if level != "local":
        parts.append(rows.source_mask.float())
    if level != "global":
        parts.append(rows.strata_mask.flatten(1).float())
    return torch.cat(parts, 1)


def split_action(
    actions: torch.Tensor, rows: Rows, level: Level = "joint"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries float[n, K] of sources and float[n, K, G] of strata; 0 at the other level."""
    sources = rows.sources.shape[1]
    top = rows.source_mask.new_zeros(rows.source_mask.shape, dtype=actions.dtype)
    inner = rows.strata_mask.new_zeros(rows.strata_mask.shape, dtype=actions.dtype)
    if level != "local":
        top = actions[:, :sources]
    if level != "global":
        rest = actions if level == "local" else actions[:, sources:]
        inner = rest.reshape(inner.shape)
    return top, inner


def join_action(top: torch.Tensor, inner: torch.Tensor, level: Level = "joint") -> torch.Tensor:
    """The inverse of :func:`split_action`: float[n, entries]."""
    parts = {"joint": [top, inner.flatten(1)], "global": [top], "local": [inner.flatten(1)]}
    return torch.cat(parts[level], 1)


def level_sizes(shape: tuple[int, int], level: Level) -> list[int]:
    """Entries of an action, level by level: a deviation or a temperature each."""
    sources, strata = shape
    sizes = {"joint": [sources, sources * strata], "global": [sources], "local": [strata]}
    return sizes[level]


def by_entry(values: torch.Tensor, shape: tuple[int, int], level: Level) -> torch.Tensor:
    """Numbers per level float[..., levels] as numbers per entry float[..., entries]."""
    sizes = torch.tensor(level_sizes(shape, level), device=values.device)
    return values.repeat_interleave(sizes, dim=-1)


def rows_shape(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], level: Level
) -> tuple[int, int]:
    """(K_max, G_max) of an environment; (1, G_max) of a local one.

    Raises:
        ValueError: if its spaces are not those of the level.
    """
    if not isinstance(observation_space, spaces.Box) or level not in LEVELS:
        raise ValueError(
            f"level {level!r} with {observation_space}: the policy needs the flat observation and "
            f"a level of {', '.join(LEVELS)}"
        )
    size = observation_space.shape[0]
    entries = _entries(action_space)
    if level == "joint":
        return shape_of(size, entries)
    if level == "local":
        if local_size(entries) == size:
            return 1, entries
    else:
        top, inner = len(SOURCES) + 1, len(STRATA) + 1
        cells, left = divmod(size - len(PROGRESS) - entries * top, entries * inner)
        if left == 0 and cells > 0:
            return entries, cells
    raise ValueError(
        f"an observation of {size} and an action of {entries} entries are not those of the "
        f"{level} level with the flat observation"
    )


def _entries(action_space: spaces.Space[Any]) -> int:
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n) - 1  # the first one leaves everything as it is
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        return int(action_space.shape[0])
    raise ValueError(f"{action_space}: the policy needs a flat Box, or Discrete for nudges")
