"""Two references beside which every agent is shown: a curriculum, and an adversarial bandit."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.rule import Rule, Signals
from mixgym.envs.errors import ConfigError
from mixgym.envs.mixture import FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

MOST_SOURCES = 512  # that a bandit can remember


class EasyToHard(Rule):
    """A hand-made curriculum: sources alike, strata from the easiest to the hardest.

    Within a source a stratum's natural share is multiplied by a bell over its rank, whose centre
    moves from 0 to 1 with the budget.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        width: of the bell, in ranks (0 the easiest, 1 the hardest).

    Raises:
        ConfigError: if ``width`` is not positive.
    """

    def __init__(
        self, env: "VecEnv | None" = None, names: tuple[str, ...] = (), *, width: float = 0.3
    ) -> None:
        super().__init__(env, names)
        if not width > 0:
            raise ConfigError(f"agent.options.width={width}: must be positive")
        self.width = float(width)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray]:
        """See :class:`Rule`."""
        size = signals.cells["size"]
        groups = (size > 0).sum(-1, keepdims=True)
        rank = np.arange(size.shape[1]) / np.maximum(groups - 1, 1)
        bell = np.exp(-(((rank - signals.used) / self.width) ** 2))
        return signals.trainable.astype(np.float64), size * bell

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {"width": self.width}


class Exp3(Rule):
    """Exponential weights over sources, paid by what each source's held-out loss fell.

    After a decision source k is paid x_k = target_k (fall of its NLL / its NLL at the start) / p_k,
    over the largest |x| so far; its score rises by ``rate`` times that. The weights are
    (1 - explore) softmax(scores) + explore / K (Auer et al. 2002, with every arm seen).

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        rate: how fast scores move.
        explore: share of uniform in the weights.

    Raises:
        ConfigError: if ``rate`` is not positive or ``explore`` not in (0, 1].
    """

    #: scores; NLL at the last decision (0: none yet); largest |x| so far
    state_shapes: ClassVar[tuple[tuple[int, ...], ...]] = ((MOST_SOURCES,), (MOST_SOURCES,), (1,))

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        rate: float = 3.0,
        explore: float = 0.1,
    ) -> None:
        super().__init__(env, names)
        if not rate > 0 or not 0 < explore <= 1:
            raise ConfigError(
                f"agent.options: rate={rate} must be positive, explore={explore} in (0, 1]"
            )
        self.rate, self.explore = float(rate), float(explore)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        scores, before, largest = memory
        rows = signals.sources
        count = len(rows["nll"])
        if before.any():
            fall = (before[:count] - rows["nll"]) / np.maximum(rows["nll_start"], 1e-9)
            paid = rows["target"] * fall / np.maximum(rows["weight"], 1e-3)
            largest[0] = max(largest[0], np.abs(paid).max(), 1e-12)
            scores[:count] += self.rate * paid / largest[0]
        before[:count] = rows["nll"]
        powers = np.where(signals.trainable, np.exp(scores[:count] - scores[:count].max()), 0.0)
        uniform = signals.trainable / signals.trainable.sum()
        return (1.0 - self.explore) * powers / powers.sum() + self.explore * uniform, None

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {"rate": self.rate, "explore": self.explore}
