"""Registers the environments with Gymnasium, and makes the joint one from plain data."""

from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:  # importing this package is to stay cheap
    from mixgym.envs.environment import MixtureEnv

ENVIRONMENTS = {
    "mixgym/Mixture-v0": "mixgym.envs.registration:make_mixture_env",
    "mixgym/Global-v0": "mixgym.envs.levels.single:make_global_env",
    "mixgym/Local-v0": "mixgym.envs.levels.single:make_local_env",
}

BATCHES = {
    "mixgym/Mixture-v0": "mixgym.envs.curves.gymnasium_vector:CurvesVectorEnv",
    "mixgym/Global-v0": "mixgym.envs.levels.gymnasium_vector:GlobalVectorEnv",
    "mixgym/Local-v0": "mixgym.envs.levels.gymnasium_vector:LocalVectorEnv",
}
"""Ids that also come as a batch (``gym.make_vec``), and what makes it."""


def register_environments() -> None:
    """Register every id of :data:`ENVIRONMENTS`.

    There is no ``max_episode_steps``: the end of the budget is a true terminal state, and a time
    limit would make Stable-Baselines3 bootstrap past it.
    """
    for name, entry_point in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=entry_point, vector_entry_point=BATCHES.get(name))


def make_mixture_env(render_mode: str | None = None, **options: Any) -> "MixtureEnv":
    """Entry point of ``mixgym/Mixture-v0``: plain-data options, learner ``curves`` by default."""
    from mixgym.envs.build import build_environment
    from mixgym.envs.options import WorldOptions

    options.setdefault("environment", {})
    options["environment"] = {"learner": "curves", **dict(options["environment"])}
    return build_environment(WorldOptions.model_validate(options), render_mode=render_mode)
