"""What merging raises."""

from mixgym.envs.errors import MixgymError


class MergeError(MixgymError):
    """A merge cannot be done as asked: the message names the model, the tensor and the fix."""
