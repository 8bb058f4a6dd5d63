"""Trained algorithms: made from a configuration, saved and loaded so that a resume is exact."""

import importlib
from pathlib import Path
from typing import Any, Literal

from stable_baselines3.common.base_class import BaseAlgorithm

from mixgym.agents.presets import PRESETS, Preset
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import RunConfig

Level = Literal["joint", "global", "local"]
MODEL = "model.zip"


def preset_of(algo: str) -> Preset:
    """The defaults of a trained algorithm.

    Raises:
        ConfigError: if it is none.
    """
    if algo not in PRESETS:
        raise ConfigError(
            f"train.algo={algo}: not a trained algorithm; known: {', '.join(PRESETS)}"
        )
    return PRESETS[algo]


def make_algorithm(
    config: RunConfig, env: Any, *, level: Level = "joint", stage: str = "curves"
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
    preset = preset_of(config.train.algo)
    options = {**preset.options, **config.train.options}
    if stage == "causal_lm" and "n_steps" not in config.train.options:
        # a rollout of two fine-tuning runs
        decisions = -(-config.training.steps // config.training.interval)
        options["n_steps"] = 2 * decisions
        options["batch_size"] = 2 * decisions
    if "batch_size" in options and "batch_size" not in config.train.options:
        options["batch_size"] = min(options["batch_size"], options["n_steps"] * env.num_envs)
    policy_options = {**preset.policy_options, **config.train.policy, "level": level}
    try:
        algorithm: BaseAlgorithm = _named(preset.algorithm)(
            _named(preset.policy),
            env,
            seed=config.seed,
            device="cpu",
            policy_kwargs=policy_options,
            **options,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"train.options, train.policy: {config.train.algo}: {error}") from error
    return algorithm


def suited(config: RunConfig) -> RunConfig:
    """The configuration with the environment that ``train.algo`` acts in.

    Raises:
        ConfigError: if another action kind was asked for than the algorithm can take.
    """
    preset_of(config.train.algo)
    environment = config.environment.model_copy(update={"action": "logits", "observation": "flat"})
    return config.model_copy(update={"environment": environment})


def log_interval(algorithm: BaseAlgorithm) -> int:
    """The ``log_interval`` of ``learn`` with which curves are written once per rollout."""
    return 1


def save_algorithm(algorithm: BaseAlgorithm, folder: Path) -> None:
    """Write everything that :func:`load_algorithm` needs to continue bit-equal."""
    algorithm.save(folder / MODEL)


def load_algorithm(folder: Path, env: Any, config: RunConfig) -> BaseAlgorithm:
    """Continue from :func:`save_algorithm`; the environment is put in its state afterwards."""
    loader = _named(preset_of(config.train.algo).algorithm)
    algorithm: BaseAlgorithm = loader.load(folder / MODEL, env=env, device="cpu", force_reset=False)
    return algorithm


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
