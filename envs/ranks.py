"""What the ranks of a data-parallel run do together; one process is a sum of one.

Every function but :func:`rank` and :func:`world_size` is a collective: all ranks have to call it,
in the same order.
"""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.errors import RunError

if TYPE_CHECKING:
    import torch

_BUCKET_ELEMENTS = 2**25  # of gradients that are sent together
_EXPECTED = "WORLD_SIZE"
"""The variable by which torchrun says how many processes it has started."""


def world_size() -> int:
    """How many processes train together; before they have met, how many torchrun has started."""
    dist = _met()
    return int(os.environ.get(_EXPECTED, "1")) if dist is None else int(dist.get_world_size())


def rank() -> int:
    """Which of them this is, from 0."""
    dist = _met()
    return int(os.environ.get("RANK", "0")) if dist is None else int(dist.get_rank())


def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The element-wise sum over all ranks (a collective: every rank has to call it).

    Example:
        >>> summed(np.array([1.0, 2.0]))
        array([1., 2.])
    """
    dist = _met()
    if dist is None:
        return values
    import torch

    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    result: NDArray[np.float64] = total.cpu().numpy()
    return result


def sum_gradients(parameters: "Iterable[torch.nn.Parameter]") -> None:
    """Every parameter's gradient becomes its sum over all ranks; a missing one counts as 0."""
    dist = _met()
    if dist is None or dist.get_world_size() == 1:
        return
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in trained if p.grad is not None]):
        joined = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(joined)
        parts = joined.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def from_first(value: Any) -> Any:
    """The value that rank 0 has, on every rank."""
    dist = _met()
    if dist is None or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def check_agreement(what: str, value: str) -> None:
    """Refuse to go on where ranks differ.

    Raises:
        RunError: on every rank, if ``value`` is not the same everywhere.
    """
    dist = _met()
    if dist is None or dist.get_world_size() == 1:
        return
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    different = [i for i, other in enumerate(found) if other != found[0]]
    if different:
        raise RunError(
            f"{what} of rank {different[0]} is not that of rank 0 ({found[different[0]]} and "
            f"{found[0]}): start all ranks with the same files, options and versions"
        )


def meet() -> None:
    """Wait until all ranks are here."""
    dist = _met()
    if dist is not None:
        dist.barrier()


def part() -> None:
    """Leave the others, at the end of a run; without others nothing happens."""
    dist = _met()
    if dist is not None:
        dist.destroy_process_group()


def _met() -> Any:
    """torch.distributed, if the ranks have met; torch is imported only where there are several."""
    if int(os.environ.get(_EXPECTED, "1")) == 1 and "torch" not in sys.modules:
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


def _buckets(gradients: "list[torch.Tensor]") -> "list[list[torch.Tensor]]":
    """Gradients of one type each, in order, of about ``_BUCKET_ELEMENTS``."""
    buckets: list[list[torch.Tensor]] = []
    size = 0
    for gradient in gradients:
        fits = buckets and buckets[-1][0].dtype == gradient.dtype
        if not fits or size + gradient.numel() > _BUCKET_ELEMENTS:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.numel()
    return buckets
