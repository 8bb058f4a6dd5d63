"""Whoever decides at the other level of a mixture."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Action = NDArray[np.float32]


class Predictor(Protocol):
    """Whoever decides at the other level: anything that predicts joint actions.

    Agents of Stable-Baselines3, exported policies and rules (on the observation that they need)
    have this face.
    """

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Action, Any]:
        """The joint action [K_max + K_max * G_max] for a flat joint observation, and the state."""
        ...
