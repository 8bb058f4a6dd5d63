"""The learning rate over the budget of a run."""

import math

from mixgym.envs.options import TrainingOptions


def learning_rate_factor(progress: float, training: TrainingOptions) -> float:
    """Factor of the learning rate at a share ``progress`` of the budget.

    Rises linearly over the first ``warmup`` of the budget, then stays, falls linearly or follows a
    half cosine, to 0 at the end.
    """
    if training.warmup > 0 and progress < training.warmup:
        first = 1.0 / max(training.steps, 1)  # so that the first step is not a step of 0
        return min(1.0, (progress + first) / training.warmup)
    if training.schedule == "constant":
        return 1.0
    left = (1.0 - min(progress, 1.0)) / max(1.0 - training.warmup, 1e-9)
    return left if training.schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
