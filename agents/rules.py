"""Rules that need no reward: the baselines that every scheduler is compared with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixgym.agents.actor import State
from mixgym.agents.mixers import checks
from mixgym.agents.rule import Rule, Signals
from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.priors import COST_EXPONENT, SIZE_EXPONENT, cost_power

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class Uniform(Rule):
    """Every source that can be trained on gets the same weight."""

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        return signals.trainable.astype(np.float64), None


class Proportional(Rule):
    """Sources get weight by their size, in the unit of the ratios."""

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        return signals.sources["size"], None


class Temperature(Rule):
    """p ~ size ** (1 / tau): tau 1 is proportional, a large tau uniform.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        tau: the temperature, positive.

    Raises:
        ConfigError: if ``tau`` is not positive.
    """

    def __init__(
        self, env: "VecEnv | None" = None, names: tuple[str, ...] = (), *, tau: float = 3.0
    ) -> None:
        super().__init__(env, names)
        if not isinstance(tau, int | float) or not tau > 0:
            raise ConfigError(f"agent.options.tau={tau}: must be positive (1 is proportional)")
        self.tau = float(tau)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        size = signals.sources["size"] / signals.sources["size"].max()
        return np.where(size > 0, size ** (1.0 / self.tau), 0.0), None

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {"tau": self.tau}


class CostPower(Rule):
    """p ~ size ** size_exponent * cost ** -cost_exponent: cheap sources get more, in one line.

    The cost is what has to be read for a supervised token. If the loss of a source falls like
    tokens ** -a, tokens read are best spread with p ~ cost ** (-1 / (1 + a)) at equal amplitudes:
    an exponent of a half for a = 1, and towards 1, which is equal compute for all, for slow falls.

    The defaults are of five pairs on the first five tasks of ``real-train`` within one standard
    error of the best, and the better of two on the first five of ``real-validation`` (0.1 million
    parameters; minus uniform -0.39 nats, a third and a third -0.34): small sources are repeated and
    over-fit.

    No rule that looks at sizes and costs alone can tell a helpful source that does not count from
    noise, so sources with target 0 get ``pool`` of their weight: none, unless you know better.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        size_exponent: 0 leaves sizes alone, 1 is proportional.
        cost_exponent: 0 leaves costs alone, 1 reads equally many tokens of all.
        pool: share of its weight that a source with target 0 keeps, 0 to 1; 1 where none counts.

    Raises:
        ConfigError: for exponents that are no numbers, or a pool outside 0 to 1.
    """

    target_aware = True

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        size_exponent: float = SIZE_EXPONENT,
        cost_exponent: float = COST_EXPONENT,
        pool: float = 0.0,
    ) -> None:
        super().__init__(env, names)
        self.size_exponent = _exponent("size_exponent", size_exponent)
        self.cost_exponent = _exponent("cost_exponent", cost_exponent)
        self.pool = checks.share("pool", pool)

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, None]:
        """See :class:`Rule`."""
        columns = signals.sources
        size = np.where(signals.trainable, columns["size"], 0.0)
        return cost_power(size, columns["cost"], columns["target"], **self.options()), None

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {
            "size_exponent": self.size_exponent,
            "cost_exponent": self.cost_exponent,
            "pool": self.pool,
        }


class Fixed(Rule):
    """The weights that you give, by name; sources that are not named get 0.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        weights: name -> weight, not negative.
        strata: name -> one weight per stratum, optional.

    Raises:
        ConfigError: for unknown names, negative weights, or none at all.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        weights: Mapping[str, float] | None = None,
        strata: Mapping[str, list[float]] | None = None,
    ) -> None:
        super().__init__(env, names)
        if not weights:
            raise ConfigError("agent.options.weights: give a weight to at least one source")
        self._given = dict(weights)
        self._strata = {name: list(row) for name, row in (strata or {}).items()}
        self._top = by_name(names, self._given, "agent.options.weights")
        check_names(names, self._strata, "agent.options.strata")
        for name, row in self._strata.items():
            _checked(row, f"agent.options.strata.{name}")

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray | None]:
        """See :class:`Rule`."""
        return self._top, _inner_weights(self.names, self._strata, signals.cells["prior"].shape)

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`."""
        return {"weights": self._given, "strata": self._strata}


class Scripted(Rule):
    """Weights along the budget, linear between the points that you give.

    A mixture is set at the start of an interval and holds for all of it, so it is read off at the
    share of the budget used by then.

    Args:
        env: see :class:`Rule`.
        names: see :class:`Rule`.
        points: share of the budget (0 to 1) -> {source: weight}. Each point is normalised; before
            the first and after the last one the mixture stays. Sources not named get 0 there.
        strata: share of the budget -> one weight per stratum, easiest first, for every source.

    Raises:
        ConfigError: for unknown names, shares outside 0 to 1, negative weights, or none at all.
    """

    def __init__(
        self,
        env: "VecEnv | None" = None,
        names: tuple[str, ...] = (),
        *,
        points: Mapping[float, Mapping[str, float]] | None = None,
        strata: Mapping[float, list[float]] | None = None,
    ) -> None:
        super().__init__(env, names)
        if not points and not strata:
            raise ConfigError(
                "agent.options.points: give at least one point, such as {0.0: {math: 1}}"
            )
        self._points = _shares(points or {}, "agent.options.points")
        self._strata = _shares(strata or {}, "agent.options.strata")
        self._table = [
            by_name(names, point, f"agent.options.points.{share}")
            for share, point in self._points.items()
        ]
        for share, row in self._strata.items():
            _checked(row, f"agent.options.strata.{share}")

    def weights(self, signals: Signals, memory: State) -> tuple[FloatArray, FloatArray | None]:
        """See :class:`Rule`."""
        top = signals.trainable.astype(np.float64)
        if self._points:
            rows = np.stack([row / row.sum() for row in self._table])
            top = _interpolate(signals.used, list(self._points), rows)
        if not self._strata:
            return top, None
        rows = np.array(
            [_padded(r, signals.cells["prior"].shape[1]) for r in self._strata.values()]
        )
        inner = _interpolate(signals.used, list(self._strata), rows / rows.sum(-1, keepdims=True))
        return top, np.where(signals.cells["size"] > 0, inner, 0.0)

    def options(self) -> dict[str, Any]:
        """See :class:`Rule`; shares are text, as JSON wants keys."""
        return {
            "points": {str(share): dict(point) for share, point in self._points.items()},
            "strata": {str(share): list(row) for share, row in self._strata.items()},
        }


def _exponent(name: str, value: float) -> float:
    return checks.number(name, value, lambda _: True, "must be a finite number")


def _interpolate(at: float, shares: list[float], rows: FloatArray) -> FloatArray:
    """Linear between ``rows`` [n, K] at the sorted ``shares`` [n]; constant outside."""
    return np.array([np.interp(at, shares, column) for column in rows.T])


def by_name(names: tuple[str, ...], given: Mapping[str, float], where: str) -> FloatArray:
    """float64[K] from name -> weight; unnamed sources get 0.

    Raises:
        ConfigError: for unknown names, or weights that are negative or all 0.
    """
    check_names(names, given, where)
    return _checked([given.get(name, 0.0) for name in names], where)


def check_names(names: tuple[str, ...], given: Mapping[str, Any], where: str) -> None:
    """Raise a ConfigError for a key that is no source."""
    for name in given:
        if name not in names:
            raise ConfigError(f"{where}: {name!r} is not a source (sources: {', '.join(names)})")


def _inner_weights(
    names: tuple[str, ...], given: Mapping[str, list[float]], shape: tuple[int, ...]
) -> FloatArray | None:
    """float64[K, G_max] from name -> weights; zero rows (the natural shares) elsewhere."""
    if not given:
        return None
    return np.stack([_padded(given.get(name, [0.0]), shape[1]) for name in names])


def _shares(points: Mapping[Any, Any], where: str) -> dict[float, Any]:
    """Points by share of the budget, in order."""
    try:
        found = {float(share): value for share, value in points.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: shares of the budget are numbers from 0 to 1") from error
    outside = [share for share in found if not 0.0 <= share <= 1.0]
    if outside:
        raise ConfigError(f"{where}: {outside[0]} is outside 0 to 1 (a share of the budget)")
    return dict(sorted(found.items()))


def _checked(given: Sequence[Any], where: str) -> FloatArray:
    try:
        weights = np.array([float(weight) for weight in given])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: weights are numbers, got {given}") from error
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ConfigError(f"{where}: weights must not be negative, nor all 0, got {weights}")
    return weights


def _padded(row: list[float], size: int) -> FloatArray:
    if len(row) > size:
        raise ConfigError(f"agent.options.strata: {len(row)} weights for {size} strata")
    return np.pad(np.array(row, np.float64), (0, size - len(row)))
