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
from mixgym.agents.policies.heads import ActorSpec, act
from mixgym.agents.policies.plain import plain_spec
from mixgym.agents.policies.rows import Rows, as_local, rows_shape, split_rows
from mixgym.envs.errors import ConfigError
from mixgym.envs.spaces.observations import PROGRESS, SOURCES, STRATA

WEIGHTS, CARD = "policy.safetensors", "policy.json"
FEATURES = {"progress": list(PROGRESS), "sources": list(SOURCES), "strata": list(STRATA)}


def export_policy(policy: Any, folder: Path, card: dict[str, Any]) -> None:
    """Write a hierarchical policy.

    Args:
        policy: of any family; actor, critics and spread are kept.
        folder: made if it is not there.
        card: what is known of its training; ``floor``, ``reach`` and the kind of its actions
            belong in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in policy.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    own = {"policy": "hierarchical", "acting": policy.acting, **policy.spec.card()}
    whole = {**own, "features": FEATURES, **card}
    (folder / CARD).write_text(json.dumps(whole, indent=2) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """What :func:`export_policy` wrote beside the weights.

    Raises:
        ConfigError: if there is no exported policy, or one for another layout than today's.
    """
    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder}: holds no exported policy (no {CARD}); give a run of `mixgym train`"
        )
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / CARD}: not JSON ({error}); export the policy again") from None
    if card.get("features") != FEATURES or not {"head", "parts"} & card.keys():
        raise ConfigError(
            f"{folder}: the agent was trained on another observation layout than this version's; "
            "train it anew"
        )
    return card


def _read_spec(card: dict[str, Any]) -> ActorSpec:
    """The acting network that a card describes."""
    if "kind" in card:
        return plain_spec(card)
    return ActorSpec(
        **{name: card[name] for name in ActorSpec.__dataclass_fields__ if name in card}
    )


def load_weights(policy: Any, folder: Path) -> None:
    """Read exported weights into a policy of the same kind, for any spaces.

    Raises:
        ConfigError: if the weights are those of another kind of policy.
    """
    try:
        policy.load_state_dict(_read_weights(folder))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{folder}: the weights are those of another policy than {policy.spec}: {reason}"
        ) from None


def acting_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported parameters that actions depend on, by their names in the acting network."""
    weights, prefix = _read_weights(folder), str(read_card(folder)["acting"])
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
    """An exported policy that acts on joint observations, with joint actions.

    One that was trained for a single level leaves the entries of the other at zero, the prior; a
    local one decides for every source in turn. Its memory, if it has one, is in ``state``.

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
        self._shape = shape or rows_shape(env.observation_space, env.action_space, "joint")
        self.card = read_card(folder)
        self.spec = _read_spec(self.card)
        if self.spec.head == "greedy" and self.spec.level == "local":
            raise ConfigError(
                f"{folder}: a nudge moves one entry of the joint mixture, and cannot be decided "
                "by every source; train it at the joint or the global level"
            )
        self._net = self.spec.build()
        self._net.load_state_dict(acting_weights(folder))
        self._net.eval()
        self._generator = torch.Generator().manual_seed(seed)

    def predict(
        self,
        observation: NDArray[np.float32],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], State | None]:
        """See :class:`Actor`; nudges are int64."""
        batch = torch.from_numpy(np.atleast_2d(observation))
        with torch.no_grad():
            rows = split_rows(batch, *self._shape)
            rows = as_local(rows) if self.spec.level == "local" else rows
            found, state = self._found(rows, state, episode_start)
            own = act(self._net, found, deterministic, self._generator)
        actions = self._joint(own.numpy(), len(batch))
        return (actions[0] if observation.ndim == 1 else actions), state

    def _found(
        self, rows: Rows, state: State | None, episode_start: NDArray[np.bool_] | None
    ) -> tuple[Any, State | None]:
        if not self.spec.memory:
            return self._net(rows), state
        count = len(rows.progress)
        if state is None:
            state = (np.zeros((count, self.spec.memory), np.float32),) * 2
        starts = np.zeros(count) if episode_start is None else np.asarray(episode_start, float)
        starts = np.repeat(starts, count // len(starts))
        before = tuple(torch.from_numpy(part.astype(np.float32))[None] for part in state)
        found, (hidden, cell) = self._net.remember(
            rows, (before[0], before[1]), torch.from_numpy(starts).float()
        )
        return found, (hidden[0].numpy(), cell[0].numpy())

    def _joint(self, own: NDArray[Any], count: int) -> NDArray[Any]:
        """The level's entries among those of joint actions."""
        if self.spec.head == "greedy":
            return own
        sources, strata = self._shape
        whole = np.zeros((count, sources * (1 + strata)), np.float32)
        part = {
            "joint": slice(None),
            "global": slice(0, sources),
            "local": slice(sources, None),
        }[self.spec.level]
        low = 0.0 if self.spec.head == "dirichlet" else -1.0
        whole[:, part] = own.clip(low, 1.0).reshape(count, -1)
        return whole
