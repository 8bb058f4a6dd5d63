"""The errors that mixgym raises on bad input.

Each names what was wrong, the value seen and the fix, in one line, so that the command line can
print it as it is.
"""


class MixgymError(ValueError):
    """Bad input: the message names the file, line, source or key, and what to do."""


class ConfigError(MixgymError):
    """The configuration names something that is unknown, missing or contradictory."""


class SourceError(MixgymError):
    """A source cannot be read or used as asked."""


class PackingError(MixgymError):
    """Documents would see each other, or do not fit where they are to be packed."""


class DivergenceError(MixgymError):
    """Training or evaluation met a non-finite loss."""


class RunError(MixgymError):
    """A run folder cannot be created, resumed or read."""
