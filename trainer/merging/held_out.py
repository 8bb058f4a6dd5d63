"""mixgym's own held-out loss of a model folder: what soups and studies judge models by."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import need_rows
from mixgym.envs.rewards import target_mean
from mixgym.trainer.merging.errors import MergeError

if TYPE_CHECKING:
    from mixgym.envs.learners.causal_lm import CausalLM
    from mixgym.trainer.config import RunConfig

_TUNING_SPLITS = ("select", "reward")
"""Splits that choices may be made on; the test split is read once, at the end."""


class HeldOutLoss:
    """Target-weighted mean NLL of a model folder on one split, nats per supervised token.

    Args:
        config: sources, splits, targets and lengths; its model and agent do not matter.
        model: a folder whose configuration and tokenizer all models share.
        split: ``select`` or ``reward``.

    Raises:
        ConfigError: for the test split, and for a learner without rows.
    """

    def __init__(self, config: "RunConfig", model: str, split: str = "select") -> None:
        if split not in _TUNING_SPLITS:
            raise ConfigError(
                f"split {split!r}: models are chosen on {' or '.join(_TUNING_SPLITS)}, "
                "never on test"
            )
        need_rows(config.environment.learner, "to measure models on")
        self.split = split
        own = config.model.model_copy(update={"name": str(Path(model).expanduser())})
        self._learner, self._targets = _learner(config.model_copy(update={"model": own}))

    def __call__(self, folder: str) -> float:
        """The loss of the model in ``folder``."""
        load_weights(self._learner, Path(folder).expanduser())
        return target_mean(self._learner.evaluate(self.split).source_nll, self._targets)


def _learner(config: "RunConfig") -> "tuple[CausalLM, Any]":
    from mixgym.envs.build import build_environment
    from mixgym.envs.learners.causal_lm import CausalLM

    world = build_environment(config).world
    learner: Any = world.learner
    assert isinstance(learner, CausalLM)
    return learner, world.targets


def load_weights(learner: "CausalLM", folder: Path) -> None:
    """Give the learner the weights of a model folder, in float32; its optimiser stays.

    Raises:
        MergeError: if the folder holds no model, or one of another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        learner.model.load_state_dict(model.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MergeError(
            f"model {folder}: cannot be measured ({reason}); give folders of one architecture, as "
            "save_pretrained wrote them"
        ) from error
