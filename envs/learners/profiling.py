"""A short profile of this machine: seconds of forward and backward passes of packs of many kinds.

The rates that explain them best (:mod:`mixgym.envs.packing.costs.rate_fitting`) make the cost model
that of the user's own machine. One process is timed, so links keep the rates that were stated.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.models.attention import packed_forward
from mixgym.envs.packing.costs.rate_fitting import ProfilePoint
from mixgym.envs.packing.grouping.groups import Group

if TYPE_CHECKING:
    import torch

PARTS = (1, 2, 4, 8)  # of the longest pack: tokens of the packs that are timed
SPLITS = (1, 4, 16)  # documents that each is cut into

Clock = Callable[[], float]


def profile_model(
    model: Any, longest: int, *, repeats: int = 3, clock: Clock = time.process_time
) -> list[ProfilePoint]:
    """Time packs of several lengths, in few and in many documents.

    Args:
        model: a causal LM that isolates packed documents; it is in training mode afterwards, and
            its gradients are cleared.
        longest: tokens of the longest pack.
        repeats: passes of each kind, of which the fastest counts; one more warms up.
        clock: seconds; CPU time by default, which other programs do not disturb.

    Raises:
        ConfigError: for packs too short to tell dense work, attention and fixed costs apart.
    """
    if longest < PARTS[-1] * SPLITS[-1] * 2:
        raise ConfigError(
            f"data.max_length={longest} is too short to profile: use "
            f"{PARTS[-1] * SPLITS[-1] * 2} or more"
        )
    model.train()
    found = []
    for part in PARTS:
        tokens = longest // part
        for documents in SPLITS:
            lengths = [len(piece) for piece in np.array_split(np.arange(tokens), documents)]
            seconds = min(_passes(model, lengths, repeats, clock))
            work = int(np.square(lengths).sum())
            found.append(ProfilePoint(tokens, work, Group(longest), seconds))
    model.zero_grad(set_to_none=True)
    return found


def _passes(model: Any, lengths: Sequence[int], repeats: int, clock: Clock) -> list[float]:
    """Seconds of each timed pass."""
    import torch

    device = next(model.parameters()).device
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(sum(lengths), device=device)[None] * 7 % vocabulary
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        _pass(model, ids, positions, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return seconds[1:]


def _pass(
    model: Any, ids: "torch.Tensor", positions: "torch.Tensor", lengths: Sequence[int]
) -> None:
    import torch

    logits = packed_forward(model, ids, positions, lengths)
    torch.nn.functional.cross_entropy(logits[0].float(), ids[0]).backward()
