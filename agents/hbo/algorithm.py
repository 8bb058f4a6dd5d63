"""HBO as an algorithm of Stable-Baselines3: one policy for many fine-tuning runs.

Where the agent of :mod:`mixgym.agents.hbo.agent` keeps its actors for one run, here they are a
policy over observations whose parameters live on from episode to episode: it learns to say, from
what is seen for free, what the probes would have said, and then drives a run without any.
"""

from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from mixgym.agents.hbo.rollout import Units, after_steps, measured, units_of
from mixgym.agents.hbo.schedule import LEVELS
from mixgym.agents.hbo.settings import PROGRESS, UpdateName, check_reward, words
from mixgym.agents.hbo.shaping import known_or_mean, normalised, sharpened
from mixgym.agents.hbo.updates import UPDATES, softmax
from mixgym.agents.policies.on_policy import HierarchicalPolicy
from mixgym.agents.policies.plain import MlpPolicy, TablePolicy
from mixgym.envs.arrays import FloatArray
from mixgym.envs.errors import ConfigError
from mixgym.envs.options import EnvironmentOptions, Options

NAMES = ("global", "local")
_DEFAULTS = EnvironmentOptions()


class RolloutLevel(Options):
    """How one level of a policy learns from the rewards of a rollout."""

    reward: str = Field(..., description="a probe of this level, or progress")
    update: UpdateName = "enumerated"
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    normalize: Literal["none", "mean", "sum", "zscore"] = "sum"
    power: float = Field(1.0, gt=0, description="that rewards are raised to")


class HBO(OnPolicyAlgorithm):
    """HBO's updates on a policy with a deterministic mean, over rollouts of many episodes.

    After every decision the probes of its record are rewards for what the policy says to the
    observation that came with them. With z = s a + log q', the logits that the action kind
    ``logits`` makes of the mean action a, an update rule gives the direction in z, and the policy
    follows; returns, values and log-probabilities are not used.

    Args:
        policy: ``equivariant``, ``table``, ``mlp``, or another hierarchical policy with a Gaussian
            head: the spread explores, the mean learns.
        env: joint, or of the global level, with logits and the flat observation; it measures the
            probes that are rewards.
        n_steps: decisions of a rollout, per environment.
        batch_size: observations in an optimiser step; 0: all of a rollout.
        n_epochs: passes over a rollout: the inner steps, with rewards held fixed.
        actor: instead of ``policy``: the name of one.
        levels: ``both``, ``global``, ``local`` or ``none``.
        global_level: options of :class:`RolloutLevel`; the reward is ``gradient_alignment`` unless
            given.
        local_level: likewise; the reward is ``progress`` unless given.
        keep_state: whether Adam's state lives on from rollout to rollout.
        floor: ``environment.floor``.
        reach: ``environment.reach``.
        max_grad_norm: that gradients are clipped at.
        stats_window_size: episodes in the means that are logged.
        tensorboard_log: see Stable-Baselines3.
        policy_kwargs: options of the policy.
        verbose: see Stable-Baselines3.
        seed: of exploration, of batches and of drawn units.
        device: of the policy.

    Raises:
        ConfigError: for options that will not do, or a probe that is not measured.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "equivariant": HierarchicalPolicy,
        "table": TablePolicy,
        "mlp": MlpPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        n_steps: int = 32,
        batch_size: int = 512,
        n_epochs: int = 4,
        actor: Literal["equivariant", "table", "mlp"] | None = None,
        levels: Literal["both", "global", "local", "none"] = "both",
        global_level: dict[str, Any] | None = None,
        local_level: dict[str, Any] | None = None,
        keep_state: bool = True,
        floor: float = _DEFAULTS.floor,
        reach: float = _DEFAULTS.reach,
        max_grad_norm: float = 1.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if levels not in LEVELS:
            raise ConfigError(f"levels={levels}: choose one of {', '.join(LEVELS)}")
        self.levels = levels
        self.global_level = _read("global_level", "source", "gradient_alignment", global_level)
        self.local_level = _read("local_level", "stratum", PROGRESS, local_level)
        self.batch_size, self.n_epochs = batch_size, n_epochs
        self.keep_state, self.floor, self.reach = keep_state, floor, reach
        if actor is not None and actor not in self.policy_aliases:
            raise ConfigError(f"actor={actor}: choose one of {', '.join(self.policy_aliases)}")
        super().__init__(
            actor or policy,
            env,
            learning_rate=self._rates()[0],
            n_steps=n_steps,
            gamma=0.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _options(self) -> tuple[RolloutLevel, RolloutLevel]:
        return RolloutLevel(**self.global_level), RolloutLevel(**self.local_level)

    def _rates(self) -> list[float]:
        return [level.learning_rate for level in self._options()]

    def _setup_model(self) -> None:
        super()._setup_model()
        self._told: list[tuple[list[FloatArray], NDArray[np.bool_]]] = []
        if not hasattr(self, "_random"):  # a loaded one goes on with its own
            self._random = np.random.default_rng(self.seed)
        self._check_policy()
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self.global_optimizer, self.local_optimizer = (
            kinds[level.optimizer](self.policy.parameters(), lr=level.learning_rate)
            for level in self._options()
        )

    def _check_policy(self) -> None:
        """Refuse policies whose mean is no logit.

        Raises:
            ConfigError: naming what the policy is.
        """
        spec = getattr(self.policy, "spec", None)
        if spec is None or spec.head != "gaussian" or spec.level == "local":
            raise ConfigError(
                "HBO moves the logits of a hierarchical policy: it needs the Gaussian head and the "
                f"level joint or global, got {spec or type(self.policy).__name__}"
            )

    @property
    def _learned(self) -> tuple[bool, bool]:
        """Whether the global and the local level are learned."""
        top, inner = LEVELS[self.levels]
        return top, inner and self._own.spec.level == "joint"

    @property
    def _own(self) -> HierarchicalPolicy:
        return cast(HierarchicalPolicy, self.policy)

    @property
    def _shape(self) -> tuple[int, int]:
        return self._own.rows_shape

    def _update_info_buffer(
        self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None
    ) -> None:
        """Called once per step, before it is stored: the moment at which records are there."""
        super()._update_info_buffer(infos, dones)
        if self.rollout_buffer.pos == 0:  # of a new rollout
            self._told = []
        rewards = [measured(infos, level.reward, self._shape) for level in self._options()]
        assert dones is not None
        self._told.append((rewards, np.asarray(dones)))

    def train(self) -> None:
        """Follow the rewards of the rollout."""
        self.policy.set_training_mode(True)
        dones = np.stack([done for _, done in self._told])
        seen = after_steps(self.rollout_buffer.observations, np.asarray(self._last_obs), dones)
        flat = seen.reshape(-1, seen.shape[-1])
        for index, learned in enumerate(self._learned):
            if learned:
                found = np.stack([rewards[index] for rewards, _ in self._told])
                self._follow(index, flat, found.reshape(len(flat), *found.shape[2:]))
        self._told = []

    def _follow(self, index: int, flat: FloatArray, found: FloatArray) -> None:
        """The inner steps of one level on all observations that came with its rewards."""
        options = self._options()[index]
        free = options.reward == PROGRESS
        known = np.isfinite(flat[:, 0])
        if not free:
            known &= np.isfinite(found).reshape(len(found), -1).any(-1)
            if not known.any() and np.isfinite(flat[:, 0]).any():
                raise ConfigError(
                    f"environment.probes: HBO learns from {options.reward}, which was not "
                    f"measured; set environment.probes.{options.reward}=1"
                )
        flat = flat[known]
        if not len(flat):
            return
        units = units_of(flat, self._shape, self.floor, self.reach)[index]
        rewards = self._shaped(options, units.progress if free else found[known], units)
        optimizer = (self.global_optimizer, self.local_optimizer)[index]
        if not self.keep_state:
            optimizer.state.clear()
        size = self.batch_size or len(flat)
        for _ in range(self.n_epochs):
            order = self._random.permutation(len(flat))
            for start in range(0, len(flat), size):
                self._step(index, optimizer, flat, units, rewards, order[start : start + size])
        self._log(index, flat, units, rewards)

    def _shaped(self, options: RolloutLevel, found: FloatArray, units: Units) -> FloatArray:
        shaped = sharpened(known_or_mean(found, units.mask), options.power)
        if options.reward == PROGRESS:
            shaped = np.maximum(shaped, 0.0)
        return normalised(shaped, units.mask, options.normalize)

    def _logits(self, index: int, flat: FloatArray, units: Units) -> torch.Tensor:
        """Float[m, *, U], z = s a + log q' of the mean action."""
        observation = torch.as_tensor(flat, dtype=torch.float32, device=self.device)
        mean = self._own.actor_net(self._own.rows(observation)).inner.mean
        sources = self._shape[0]
        entries = mean[:, sources:].reshape(-1, *self._shape) if index else mean[:, :sources]
        scale, base = (self._tensor(values) for values in (units.scale, units.base))
        logits: torch.Tensor = scale * entries + base
        return logits

    def _tensor(self, values: FloatArray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _step(
        self,
        index: int,
        optimizer: torch.optim.Optimizer,
        flat: FloatArray,
        units: Units,
        rewards: FloatArray,
        batch: NDArray[np.intp],
    ) -> None:
        own = Units(units.mask[batch], units.base[batch], units.scale[batch], units.progress[batch])
        logits = self._logits(index, flat[batch], own)
        weights = softmax(logits.detach().cpu().numpy().astype(np.float64), own.mask)
        draws = self._random.random(weights.shape[:-1])
        slope = UPDATES[self._options()[index].update].gradient(weights, rewards[batch], draws)
        loss = -(self._tensor(slope) * logits).sum() / max(int(own.mask.any(-1).sum()), 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        optimizer.step()

    def _log(self, index: int, flat: FloatArray, units: Units, rewards: FloatArray) -> None:
        """How far the policy is from R / sum R, in nats, and how often rewards differ at all."""
        with torch.no_grad():
            logits = self._logits(index, flat, units).cpu().numpy().astype(np.float64)
        weights = softmax(logits, units.mask)
        share = normalised(np.maximum(rewards, 0.0), units.mask, "sum")
        both = (share > 0) & (weights > 0)
        ratio = np.where(both, share, 1.0) / np.where(both, weights, 1.0)
        gap = (np.where(both, share, 0.0) * np.log(ratio)).sum(-1)
        self.logger.record(f"train/{NAMES[index]}_gap", float(gap.mean()))
        entropy = -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(-1)
        self.logger.record(f"train/{NAMES[index]}_entropy", float(entropy.mean()))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_told"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "global_optimizer", "local_optimizer"], []


def _read(where: str, level: str, reward: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """The options of a level as plain data.

    Raises:
        ConfigError: for options that will not do.
    """
    try:
        options = RolloutLevel.model_validate({"reward": reward, **(given or {})})
    except ValidationError as error:
        raise ConfigError(
            "\n".join(
                words(mistake, ("train", "options", where), RolloutLevel)
                for mistake in error.errors()
            )
        ) from None
    check_reward(options.reward, level, f"train.options.{where}.reward")
    return options.model_dump()
