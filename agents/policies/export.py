"""A trained policy as safetensors and JSON: safe to share, and independent of sizes.

Transfer to another number of sources or strata is reading the same weights into networks for the
new spaces; there is nothing in them that depends on K or G.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mixgym.agents.actor import Actor, State
from mixgym.agents.policies.network import HierarchicalActor, action_mask, split_rows
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.envs.errors import ConfigError
from mixgym.envs.observations import PROGRESS, SOURCES, STRATA, shape_of

WEIGHTS, CARD = "policy.safetensors", "policy.json"
FEATURES = {"progress": list(PROGRESS), "sources": list(SOURCES), "strata": list(STRATA)}


def export_policy(policy: HierarchicalPolicy, folder: Path, card: dict[str, Any]) -> None:
    """Write the policy.

    Args:
        policy: whose actor, critic and spread are kept.
        folder: made if it is not there.
        card: what is known of its training; ``floor`` and ``reach`` of its actions belong in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    whole = {"policy": "hierarchical", "width": policy.width, "features": FEATURES, **card}
    (folder / CARD).write_text(json.dumps(whole, indent=2) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """What :func:`export_policy` wrote beside the weights.

    Raises:
        ConfigError: if there is no exported policy, or one for other features than today's.
    """
    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder}: holds no exported policy (no {CARD}); give a run of `mixgym train`"
        )
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / CARD}: not JSON ({error}); export the policy again") from None
    if card.get("features") != FEATURES:
        raise ConfigError(
            f"{folder}: was trained on other features than this version observes; train it again"
        )
    return card


def load_weights(policy: HierarchicalPolicy, folder: Path) -> None:
    """Read exported weights into a policy for any spaces (same width)."""
    policy.load_state_dict(_read_weights(folder))


def acting_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported parameters that actions depend on, by their names in the acting network."""
    prefix = "actor_net."
    weights = _read_weights(folder)
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        weights: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder / WEIGHTS}: cannot be read ({error}); export the policy again"
        ) from None
    return weights


class ExportedPolicy(Actor):
    """An exported policy that acts.

    Args:
        folder: that :func:`export_policy` wrote.
        env: a vector environment with the flat observation, or None to predict only.
        shape: (K_max, G_max), where there is no ``env`` to read them from.
        seed: of sampled actions (``deterministic=False``).

    Raises:
        ConfigError: see :func:`read_card`; or if neither ``env`` nor ``shape`` is given.
    """

    def __init__(
        self,
        folder: Path,
        env: Any = None,
        *,
        shape: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(env)
        if env is None and shape is None:
            raise ConfigError(f"{folder}: an exported policy needs env=... or shape=(K_max, G_max)")
        self._shape = shape or shape_of(env.observation_space.shape[0], env.action_space.shape[0])
        self.card = read_card(folder)
        self._net = HierarchicalActor(int(self.card["width"]))
        weights = _read_weights(folder)
        self._net.load_state_dict(acting_weights(folder))
        self._net.eval()
        self._log_std = weights["log_std"]
        self._generator = torch.Generator().manual_seed(seed)

    def predict(
        self,
        observation: NDArray[np.float32],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.float32], State | None]:
        """See :class:`Actor`."""
        batch = np.atleast_2d(observation)
        sources, strata = self._shape
        with torch.no_grad():
            rows = split_rows(torch.from_numpy(batch), sources, strata)
            mean = self._net(rows)
            if not deterministic:
                levels = self._log_std.repeat_interleave(torch.tensor([sources, sources * strata]))
                noise = torch.randn(mean.shape, generator=self._generator)
                mean = mean + noise * levels.exp() * action_mask(rows)
        actions = mean.clamp(-1.0, 1.0).numpy()
        return (actions[0] if observation.ndim == 1 else actions), state
