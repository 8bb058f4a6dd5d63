"""Registers the environments with Gymnasium; safe to call more than once."""

import gymnasium as gym

ENVIRONMENTS = {
    "mixgym/Mixture-v0": "mixgym.envs.environment:make_mixture_env",
    "mixgym/Global-v0": "mixgym.envs.levels.single:make_global_env",
    "mixgym/Local-v0": "mixgym.envs.levels.single:make_local_env",
}

BATCHES = {"mixgym/Mixture-v0": "mixgym.envs.curves.gymnasium_vector:CurvesVectorEnv"}
"""Ids that also come as a batch (``gym.make_vec``), and what makes it."""


def register_environments() -> None:
    """Register every id of :data:`ENVIRONMENTS`.

    There is no ``max_episode_steps``: the end of the budget is a true terminal state, and a time
    limit would make Stable-Baselines3 bootstrap past it.
    """
    for name, entry_point in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=entry_point, vector_entry_point=BATCHES.get(name))
