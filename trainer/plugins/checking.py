"""Checks of plug-ins: each has a name, and what it found is a sentence with the fix."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray

Check = tuple[str, Callable[[], str]]
"""A name, and what looks: it returns what it saw, or raises a :class:`FlawError`."""


class FlawError(Exception):
    """What a plug-in does not hold, and what to do about it."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        passed: whether the plug-in holds it.
        said: what was seen; of a flaw, what failed and what to do.
    """

    check: str
    passed: bool
    said: str


def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """Run checks, one after the other; what one finds does not keep the others from running."""
    return [_run(name, look) for name, look in checks]


def _run(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except FlawError as flaw:
        return Finding(name, False, str(flaw))
    except Exception as error:  # of the plug-in, whatever it is
        reason = " ".join(str(error).split())
        advice = f"it raised {type(error).__name__}: {reason}; it must not, for such input"
        if "read-only" in reason:
            advice = "it writes into what it is given; work on a copy (values.copy())"
        return Finding(name, False, advice)


def need(holds: bool, flaw: str) -> None:
    """Raise a :class:`FlawError` with the sentence ``flaw`` unless something holds."""
    if not holds:
        raise FlawError(flaw)


def need_summary(summary: str) -> str:
    """The summary, which every plug-in has.

    Raises:
        FlawError: if there is none.
    """
    need(
        bool(summary.strip()),
        "it says nothing of itself; give its function or class a docstring, or its kind a summary",
    )
    return summary


def need_same(one: Any, other: Any, flaw: str) -> None:
    """Refuse two results that differ in a bit; NaN is NaN; see :func:`need`."""
    need(_same(one, other), flaw)


def need_close(one: Any, other: Any, flaw: str) -> None:
    """Refuse two arrays that differ by more than rounding; see :func:`need`."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    need(
        one.shape == other.shape and np.allclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True),
        flaw,
    )


def _same(one: Any, other: Any) -> bool:
    if is_dataclass(one) and type(one) is type(other):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray | np.generic | float):
        return bool(np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f"))
    return bool(one == other)


def frozen(values: FloatArray) -> FloatArray:
    """A copy that nobody can write into."""
    copied = np.array(values)
    copied.flags.writeable = False
    return copied
