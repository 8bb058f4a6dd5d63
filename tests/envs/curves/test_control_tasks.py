import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.envs.curves.dynamics import CurveState, advance, nll
from mixgym.envs.curves.task import CurveTask
from mixgym.envs.curves.tasks.controls import (
    FIRST_SEED,
    NOISE,
    TWINS,
    duplicate_tasks,
    identical_tasks,
    noise_tasks,
)
from mixgym.envs.curves.tasks.sets import TASK_SETS


def after(task: CurveTask, weights: FloatArray, decisions: int = 8) -> FloatArray:
    """float64[K], NLL after the budget under a fixed mixture, strata by size."""
    state = CurveState.start(task)
    inner = task.size / np.maximum(task.size.sum(-1, keepdims=True), 1e-9)
    tokens = float(task.budget) / decisions * weights[:, None] * inner
    for _ in range(decisions):
        state = advance(task, state, tokens)
    return nll(task, state).mean(-1)


def test_identical_sources_are_alike_and_uniform_is_best() -> None:
    rng = np.random.default_rng(0)
    for task in identical_tasks(6, sources=4):
        assert task.size.shape == (4, 1)
        assert (task.targets == 1.0).all()
        even = after(task, np.full(4, 0.25))
        assert np.ptp(even) < 1e-12
        for _ in range(5):
            assert after(task, rng.dirichlet(np.ones(4))).mean() > even.mean() - 1e-12


def test_the_noise_source_cannot_be_learnt_counts_for_nothing_and_teaches_nobody() -> None:
    for task in noise_tasks(6):
        assert task.targets[NOISE] == 0.0
        assert (np.delete(task.targets, NOISE) == 1.0).all()
        alone = after(task, np.eye(6)[NOISE])
        start = nll(task, CurveState.start(task)).mean(-1)
        others = np.arange(6) != NOISE
        assert (alone[others] == start[others]).all()
        assert alone[NOISE] > start[NOISE] - 0.03
        assert start[NOISE] > 3.0


def test_twins_know_what_either_was_taught() -> None:
    for task in duplicate_tasks(6):
        first, second = TWINS
        only_first = after(task, np.eye(6)[first], 2)
        only_second = after(task, np.eye(6)[second], 2)
        # but for the cost of repeating, which falls on the rows that were repeated
        fall = nll(task, CurveState.start(task)).mean(-1)[[first, second]]
        assert (fall > only_first[[first, second]]).any()
        assert only_first[first] == only_second[second]
        assert only_first[second] == only_second[first]
        assert (only_first[2:] == only_second[2:]).all()


def test_their_seeds_are_not_those_of_the_frozen_sets() -> None:
    sets = [getattr(tasks, "seeds", tasks) for tasks in TASK_SETS.values()]
    used = {seed for seeds in sets for seed in seeds}
    assert not used & set(range(FIRST_SEED, FIRST_SEED + 10_000))
