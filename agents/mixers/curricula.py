"""Curricula: sources alike, strata along the budget."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers.checks import positive
from mixgym.agents.mixers.mixer import Mixer
from mixgym.agents.rule import Signals
from mixgym.envs.arrays import FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class EasyToHard(Mixer):
    """A hand-made curriculum: sources alike, strata from the easiest to the hardest.

    Within a source a stratum's natural share is multiplied by a bell over its rank, whose centre
    moves from 0 to 1 with the budget (Bengio et al. 2009 order examples by difficulty; the bell is
    ours, so that no stratum is ever shut out).

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        width: of the bell, in ranks (0 the easiest, 1 the hardest).

    Raises:
        ConfigError: if ``width`` is not positive.
    """

    #: whether the bell moves towards the hard strata
    forward: ClassVar[bool] = True

    def __init__(
        self, env: "VecEnv | None" = None, names: tuple[str, ...] = (), *, width: float = 0.3
    ) -> None:
        super().__init__(env, names, width=width)
        self.width = positive("width", width)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray]:
        """See :class:`Rule`."""
        size = signals.cells["size"]
        groups = (size > 0).sum(-1, keepdims=True)
        rank = np.arange(size.shape[1]) / np.maximum(groups - 1, 1)
        centre = signals.used if self.forward else 1.0 - signals.used
        distance = np.where(size > 0, (rank - centre) / self.width, np.inf) ** 2
        bell = np.exp(distance.min(-1, keepdims=True, initial=1e300) - distance)
        return signals.trainable.astype(np.float64), size * bell


class HardToEasy(EasyToHard):
    """The reverse of :class:`EasyToHard`, with the same options: the control of a curriculum."""

    forward: ClassVar[bool] = False
