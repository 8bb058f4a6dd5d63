"""Finding the model and its tokenizer: a preset, a local folder, a hub name, or SmolLM2."""

from collections.abc import Callable, Iterable
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.models import small_models as presets
from mixgym.envs.learners.models.model_source import (
    check_config,
    check_no_adapters,
    locate,
    refusal,
)
from mixgym.envs.options import DataOptions, ModelOptions


def load_tokenizer(options: ModelOptions, texts: Callable[[], Iterable[str]]) -> Any:
    """The tokenizer of the model.

    Args:
        options: which model.
        texts: training text, called only for a preset, whose tokenizer is trained on it.
    """
    if options.name in presets.PRESETS:
        return presets.build_tokenizer(texts(), presets.PRESETS[options.name].vocabulary)
    from transformers import AutoTokenizer

    _checked_config(options.name)  # what cannot be trained is said before its rows are read
    tokenizer = _pretrained(AutoTokenizer, options.name)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.name={options.name}: its tokenizer is a slow one, and labels are placed by "
            "character offsets: choose a model with a tokenizer.json"
        )
    return tokenizer


def load_model(options: ModelOptions, max_length: int) -> Any:
    """The causal LM, in float32, on CPU."""
    if options.name in presets.PRESETS:
        preset = presets.PRESETS[options.name]
        return presets.build_model(preset, seed=options.init_seed, max_positions=max_length)
    import torch
    from transformers import AutoModelForCausalLM

    _checked_config(options.name)
    model, report = _pretrained(
        AutoModelForCausalLM, options.name, dtype=torch.float32, output_loading_info=True
    )
    check_no_adapters(options.name, model)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"model.name={options.name}: {len(missing)} weights are missing ({missing[0]} is one) "
            "and would be random: is it a complete causal language model?"
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit < max_length:
        raise ConfigError(
            f"data.max_length={max_length}: {options.name} holds {limit} tokens at most"
        )
    return model


def _pretrained(factory: Any, name: str, **arguments: Any) -> Any:
    where, how = locate(name)
    from safetensors import SafetensorError

    try:
        return factory.from_pretrained(where, **how, **arguments)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise refusal(name, reason) from error


def _checked_config(name: str) -> Any:
    """The configuration of a model that can be fine-tuned.

    Raises:
        ConfigError: if it is of another kind.
    """
    from transformers import AutoConfig

    config = _pretrained(AutoConfig, name)
    check_config(name, config)
    return config


def model_config(options: ModelOptions, data: DataOptions) -> Any:
    """The configuration of the model, without its weights."""
    if options.name in presets.PRESETS:
        return presets.make_config(presets.PRESETS[options.name], data.max_length)
    return _checked_config(options.name)


def describe(options: ModelOptions) -> tuple[int, int]:
    """(parameters, vocabulary) of a model that is not a preset, without loading its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _checked_config(options.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return int(model.num_parameters()), int(config.get_text_config().vocab_size)
