"""What merging raises, and the nearest-name hint that its messages share."""

import difflib
from collections.abc import Iterable

from mixgym.envs.errors import MixgymError


class MergeError(MixgymError):
    """A merge cannot be done as asked: the message names the model, the tensor and the fix."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest known name, or the list of all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
