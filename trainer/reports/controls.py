"""Controls of a scheduler: does it schedule, or does it pick a mixture?

What it did on the tasks of the fast world is played again, in another order. *Own mean held*: in
every decision the mixture in which it trained on the whole, so that every cell gets the tokens that
it got, all the time alike. *Backwards*: its own decisions from the last to the first. An agent
whose order is worth something ends lower than both; one that ends where they do has found a
mixture, and could say so at the start.
"""

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.batch.records import StepArrays
from mixgym.envs.curves.tasks.sets import Tasks
from mixgym.envs.learners.kinds import CURVES
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.training.validation import (
    Controls,
    Predict,
    TaskScores,
    drive,
    ending,
    fast_world,
)


def controlled_score(
    predict: Predict,
    options: EnvironmentOptions,
    tasks: Tasks,
) -> tuple[TaskScores, Controls]:
    """The score of a scheduler, and those of its two controls minus its own.

    Args:
        predict: as of an agent: ``(observation, state, episode_start, deterministic)``.
        options: action kind and observation that it wants.
        tasks: that it drives an episode of each.
    """
    core = fast_world(options, tasks)
    made: list[StepArrays] = []
    drive(predict, core, lambda core: made.append(core.last))
    own = ending(core)
    actions = np.stack([_action(step.weight, step.strata) for step in made])
    held = np.broadcast_to(own_mean(made[-1].given), actions.shape)
    again = [_replayed(order, options, tasks) - own.mean for order in (held, actions[::-1])]
    return own, Controls(*again)


def own_mean(given: FloatArray) -> FloatArray:
    """float64[n, K + K G], the action whose mixture gives every cell its share of all tokens.

    The mean over decisions is one over tokens: where what is cheap to read is trained on, a step
    holds more of them.

    Args:
        given: float64[n, K, G], supervised tokens trained on in an episode.
    """
    return _action(given.sum(-1) / given.sum((-2, -1))[:, None], given)


def _action(top: FloatArray, inner: FloatArray) -> FloatArray:
    """float64[n, K + K G] of kind ``weights``: no entry may exceed 1, and rows are normalised."""
    rows = inner / np.maximum(inner.sum(-1, keepdims=True), 1e-300)
    return np.concatenate([top, rows.reshape(len(top), -1)], -1)


def _replayed(actions: FloatArray, options: EnvironmentOptions, tasks: Tasks) -> FloatArray:
    """float64[n], target-weighted mean NLL after ``actions`` [decisions, n, K + K G]."""
    plain = EnvironmentOptions(
        learner=CURVES,
        action="weights",
        max_sources=options.max_sources,
        max_strata=options.max_strata,
    )
    core, order = fast_world(plain, tasks), iter(actions)
    drive(lambda *_: (next(order), None), core)
    return ending(core).mean
