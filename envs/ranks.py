"""Sums over the ranks of a data-parallel run; one process is a sum of one."""

import numpy as np
from numpy.typing import NDArray


def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The element-wise sum over all ranks (a collective: every rank has to call it).

    Example:
        >>> summed(np.array([1.0, 2.0]))
        array([1., 2.])
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return values
    import torch

    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    result: NDArray[np.float64] = total.cpu().numpy()
    return result
