"""Defaults of each trained algorithm: its class, its policy, its hyper-parameters.

Everything here can be overridden by ``train.options`` and ``train.policy``. Tuned once on the
validation tasks of the fast world.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """How one algorithm is made.

    Attributes:
        summary: one line for ``mixgym list algorithms``.
        algorithm: ``module:class`` of a Stable-Baselines3 algorithm.
        policy: ``module:class`` of its hierarchical policy.
        options: keyword arguments of the algorithm.
        policy_options: keyword arguments of the policy.
    """

    summary: str
    algorithm: str
    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    policy_options: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "ppo": Preset(
        summary="PPO with the hierarchical policy (trained by `mixgym train`)",
        algorithm="stable_baselines3:PPO",
        policy="mixgym.agents.policies.on_policy:HierarchicalPolicy",
        options={
            # a rollout of one episode in each of 64 environments of the fast world
            "n_steps": 32,
            "batch_size": 512,
            "n_epochs": 4,
            "learning_rate": 1e-3,
            # the return is the fall of the loss over the whole run: nothing to discount
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "max_grad_norm": 0.5,
        },
        # a narrow start: with a wide one most weight goes to a random source
        policy_options={"width": 64, "log_std_init": -1.0},
    ),
}
