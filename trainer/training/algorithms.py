"""Trained algorithms: made from a configuration, saved and loaded so that a resume is exact.

One word, ``train.algo``, chooses the algorithm. Its defaults are in ``agents/presets.yaml``; what
``train.options`` and ``train.policy`` hold goes over them, and a name that an algorithm does not
know is refused.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sb3_contrib import ARS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from mixgym.agents.agent_options import parameters_of
from mixgym.agents.algorithm_presets import Preset
from mixgym.agents.registry import training_of
from mixgym.agents.requires import Action, Requires
from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.learners.kinds import CAUSAL_LM, CURVES
from mixgym.envs.plugins.outside import load_object
from mixgym.trainer.config import RunConfig

Level = Literal["joint", "global", "local"]
MODEL, MEMORY, STREAMS = "model.zip", "memory.npz", "streams.json"

_SHARES = ("gamma", "gae_lambda", "tau")
"""Options that are numbers from 0 to 1."""

OWN = ("self", "policy", "env", "policy_kwargs", "seed", "device", "_init_setup_model")
"""Keyword arguments of algorithms that are not the user's."""


def training_needs(config: RunConfig) -> Requires:
    """The environment that ``train.algo`` acts in.

    Value-based algorithms act by nudges, the others by vectors; reach and step are those of the
    preset unless they were given.

    Raises:
        ConfigError: if another action kind was asked for than the algorithm can take.
    """
    preset, given = training_of(config.train.algo), config.environment.model_fields_set
    own: Action = preset.environment["action"]
    if config.train.policy.get("head") == "dirichlet":
        own = "weights"
    takes = ("logits", "delta") if own == "logits" else (own,)
    asked = config.environment.action
    if "action" not in given:
        asked = own
    elif asked not in takes:
        raise ConfigError(
            f"environment.action={asked}: {config.train.algo} acts by {' or '.join(takes)}; "
            "leave the key out"
        )
    settings = {name: value for name, value in preset.environment.items() if name not in given}
    settings.pop("action", None)
    return Requires(action=asked, settings=settings)


def make_algorithm(
    config: RunConfig, env: Any, *, level: Level = "joint", stage: str = CURVES
) -> BaseAlgorithm:
    """The algorithm of the configuration on a vector environment.

    Args:
        config: ``train.algo`` with its options, and those of its policy.
        env: of the joint level, or of one level.
        level: what the environment's actions set: all weights, those of sources, or those of the
            strata of a source.
        stage: the world: rollouts on a language model are shorter.

    Raises:
        ConfigError: for options that it does not take.
    """
    preset = training_of(config.train.algo)
    algorithm = load_object(preset.algorithm)
    _check_names(config, algorithm)
    options = _options(config, preset, env, stage)
    policy_options = {**preset.policy_options, **config.train.policy, "level": level}
    try:
        made: BaseAlgorithm = algorithm(
            load_object(preset.policy),
            env,
            seed=config.seed,
            device="cpu",
            policy_kwargs=policy_options,
            **options,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"train.options, train.policy: {config.train.algo}: {error}") from error
    return made


def _check_names(config: RunConfig, algorithm: Any) -> None:
    """Refuse options that the algorithm does not have.

    Raises:
        ConfigError: with the nearest name that it has.
    """
    known = [name for name in parameters_of(algorithm) if name not in OWN]
    for name in config.train.options:
        if name not in known:
            raise ConfigError(
                f"train.options.{name}: {config.train.algo} has no such option; "
                f"{did_you_mean(name, known)}"
            )
    if "level" in config.train.policy:
        raise ConfigError("train.policy.level: the level is train.level")


def _options(config: RunConfig, preset: Preset, env: Any, stage: str) -> dict[str, Any]:
    """Keyword arguments of the algorithm."""
    given = config.train.options
    options = {**preset.options, **(preset.language if stage == CAUSAL_LM else {}), **given}
    if preset.family == "on_policy":
        if stage == CAUSAL_LM and "n_steps" not in given:
            # a rollout of two fine-tuning runs
            decisions = -(-config.training.steps // config.training.interval)
            options["n_steps"] = 2 * decisions
            if "batch_size" in options:
                options["batch_size"] = 2 * decisions
        if "batch_size" in options and "batch_size" not in given:
            options["batch_size"] = min(options["batch_size"], options["n_steps"] * env.num_envs)
    noise = options.get("action_noise")
    if isinstance(noise, int | float):
        size = env.action_space.shape
        options["action_noise"] = (
            NormalActionNoise(np.zeros(size), np.full(size, float(noise))) if noise else None
        )
    _check_shares(config, options)
    if isinstance(options.get("train_freq"), list):
        options["train_freq"] = tuple(options["train_freq"])
    return {name: _scheduled(value) for name, value in options.items()}


def _check_shares(config: RunConfig, options: Mapping[str, Any]) -> None:
    """Refuse discounts and the like that are no shares: nobody else does, and values explode.

    Raises:
        ConfigError: naming the option.
    """
    for name in _SHARES:
        value = options.get(name)
        if isinstance(value, int | float) and not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"train.options.{name}={value}: {config.train.algo} takes a number from 0 to 1"
            )


def decisions_per_round(algorithm: BaseAlgorithm, episode: int) -> int:
    """Steps of a learner that belong together: it takes all of them, or none.

    Args:
        algorithm: on-policy, the steps of a rollout; ARS, those that a set of candidates takes.
        episode: steps of the learner in one episode of all environments.

    Returns:
        1 for algorithms that can stop after any step.
    """
    if isinstance(algorithm, ARS):
        return 2 * int(algorithm.n_delta) * int(algorithm.n_eval_episodes) * episode
    if isinstance(algorithm, OnPolicyAlgorithm):
        return int(algorithm.n_steps) * int(algorithm.n_envs)
    return 1


def whole_rounds(steps: int, size: int) -> int:
    """The most whole rounds of ``size`` in ``steps``, in steps; one round at the least.

    >>> whole_rounds(100, 32), whole_rounds(20, 32), whole_rounds(0, 32)
    (96, 32, 0)
    """
    return max(steps // size, 1) * size if steps > 0 else 0


def updates_of(algorithm: BaseAlgorithm) -> int:
    """How often the algorithm has changed its parameters, by its own count."""
    return int(getattr(algorithm, "_n_updates", 0))


def _scheduled(value: Any) -> Any:
    """``{start, end}`` as a value that moves linearly while the training goes on."""
    if isinstance(value, dict) and value.keys() == {"start", "end"}:
        return LinearSchedule(float(value["start"]), float(value["end"]), 1.0)
    return value


def log_interval(algorithm: BaseAlgorithm) -> int:
    """The ``log_interval`` of ``learn`` with which curves are written once per rollout.

    Off-policy algorithms count episodes, of which all environments end one at a time.
    """
    return algorithm.n_envs if isinstance(algorithm, OffPolicyAlgorithm) else 1


# --- saving ---------------------------------------------------------------------------------------


def save_algorithm(algorithm: BaseAlgorithm, folder: Path) -> None:
    """Write everything that :func:`load_algorithm` needs to continue bit-equal.

    Stable-Baselines3's own file has parameters and optimisers; the rest is the replay buffer, the
    memory of an LSTM and the stream of random actions. To be called between two rollouts.
    """
    algorithm.save(folder / MODEL)
    np.savez(folder / MEMORY, allow_pickle=False, **_memory(algorithm))
    random = algorithm.action_space.np_random.bit_generator.state
    (folder / STREAMS).write_text(json.dumps(random, default=_plain))


def load_algorithm(folder: Path, env: Any, config: RunConfig) -> BaseAlgorithm:
    """Continue from :func:`save_algorithm`; the environment is put in its state afterwards."""
    loader = load_object(training_of(config.train.algo).algorithm)
    with warnings.catch_warnings():
        # the class of the buffer was chosen by n_steps, and is now taken for the user's own choice
        warnings.filterwarnings("ignore", message=".*is ignored because a custom")
        algorithm: BaseAlgorithm = loader.load(
            folder / MODEL, env=env, device="cpu", force_reset=False
        )
    with np.load(folder / MEMORY) as file:
        _set_memory(algorithm, {name: file[name] for name in file.files})
    random = json.loads((folder / STREAMS).read_text())
    algorithm.action_space.np_random.bit_generator.state = random
    return algorithm


def _memory(algorithm: BaseAlgorithm) -> dict[str, Any]:
    """What the algorithm holds between two rollouts besides parameters, as arrays by name."""
    arrays: dict[str, Any] = {}
    buffer = getattr(algorithm, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer):
        arrays |= {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
        for name, values in _buffer_arrays(buffer).items():
            arrays[f"replay_{name}"] = values if buffer.full else values[: buffer.pos]
    states = getattr(algorithm, "_last_lstm_states", None)
    if states is not None:
        arrays |= {f"lstm_{i}": t.cpu().numpy() for i, t in enumerate((*states.pi, *states.vf))}
    return arrays


def _set_memory(algorithm: BaseAlgorithm, arrays: Mapping[str, Any]) -> None:
    buffer = getattr(algorithm, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer):
        buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])
        for name, values in _buffer_arrays(buffer).items():
            saved = arrays[f"replay_{name}"]
            values[: len(saved)] = saved
    states = getattr(algorithm, "_last_lstm_states", None)
    if states is not None:
        parts = [torch.from_numpy(arrays[f"lstm_{i}"]).to(algorithm.device) for i in range(4)]
        algorithm._last_lstm_states = type(states)(  # type: ignore[attr-defined]
            (parts[0], parts[1]), (parts[2], parts[3])
        )


def _buffer_arrays(buffer: ReplayBuffer) -> dict[str, Any]:
    """The arrays of a replay buffer, each with an entry per step."""
    return {name: values for name, values in vars(buffer).items() if isinstance(values, np.ndarray)}


def _plain(value: Any) -> Any:
    return value.tolist()
