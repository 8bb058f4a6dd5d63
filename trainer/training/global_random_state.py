"""The global random streams, which Stable-Baselines3 draws from: kept so that a resume is exact."""

import base64
import random
from typing import Any

import numpy as np


def global_streams() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's global generators, as plain data."""
    import torch

    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
    }


def set_global_streams(state: dict[str, Any]) -> None:
    """Continue from :func:`global_streams`."""
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    raw = np.frombuffer(base64.b64decode(state["torch"]), np.uint8).copy()
    torch.set_rng_state(torch.from_numpy(raw))
