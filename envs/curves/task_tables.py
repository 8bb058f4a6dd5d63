"""What follows from many tasks at once: their priors and the scales of actions."""

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions
from mixgym.envs.spaces.mixture import last_sum, logit_scale, normalise


def priors(tasks: CurveTask, options: EnvironmentOptions) -> tuple[FloatArray, FloatArray]:
    """Of every task the prior over sources, float64[tasks, K], and strata, [tasks, K, G].

    Raises:
        ConfigError: for a prior by name: tasks have other sources each.
    """
    if not isinstance(options.prior, str):
        raise ConfigError("environment.prior: a batch of tasks takes uniform or proportional")
    present = tasks.present
    size = last_sum(tasks.size)
    base = np.asarray(present.any(-1), np.float64) if options.prior == "uniform" else size
    return normalise(base, np.asarray(size > 0)), normalise(tasks.size, present)


def scales(tasks: CurveTask, reach: float) -> tuple[FloatArray, FloatArray]:
    """float64[tasks] each: the logit scale of the two levels."""
    present = tasks.present
    top = [logit_scale(int(n), reach) for n in present.any(-1).sum(-1)]
    inner = [logit_scale(int(n), reach) for n in present.any(-2).sum(-1)]
    return np.array(top), np.array(inner)
