"""Options of a mixer, checked one by one: the error names the key, the value seen and the fix."""

import math
from collections.abc import Callable, Sequence

from mixgym.envs.errors import ConfigError


def number(name: str, value: float, good: Callable[[float], bool], words: str) -> float:
    """A finite number for which ``good`` holds; ``words`` say what that is.

    Raises:
        ConfigError: for anything else.
    """
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or not good(value):
        raise ConfigError(f"agent.options.{name}={value}: {words}")
    return float(value)


def positive(name: str, value: float) -> float:
    """A number above 0.

    Raises:
        ConfigError: for anything else.
    """
    return number(name, value, lambda x: x > 0, "must be a positive number")


def share(name: str, value: float, *, zero: bool = True, one: bool = True) -> float:
    """A number from 0 to 1; ``zero`` and ``one`` say whether the ends are allowed.

    Raises:
        ConfigError: for anything else.
    """
    words = f"must be a number in {'[' if zero else '('}0, 1{']' if one else ')'}"

    def inside(x: float) -> bool:
        return 0.0 <= x <= 1.0 and (zero or x > 0.0) and (one or x < 1.0)

    return number(name, value, inside, words)


def whole(name: str, value: int, least: int = 1) -> int:
    """A whole number, at least ``least``.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"agent.options.{name}={value}: must be a whole number, {least} or more")
    return value


def flag(name: str, value: bool) -> bool:
    """True or false.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"agent.options.{name}={value}: must be true or false")
    return value


def choice(name: str, value: str, known: Sequence[str]) -> str:
    """One of the words ``known``.

    Raises:
        ConfigError: for anything else.
    """
    if value not in known:
        raise ConfigError(f"agent.options.{name}={value}: unknown (known: {', '.join(known)})")
    return value
