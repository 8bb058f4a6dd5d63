"""Where a model lies, and what is refused before anything of it is loaded.

A folder says in its files what it is: an adapter, weights of another kind, a quantised model. A hub
name is looked for in the cache, then at the hub once, without the minutes of retries that a
library would take.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.models import smollm2
from mixgym.envs.learners.models.small_models import PRESETS

CONFIG = "config.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
_HUB_PATIENCE_SECONDS = 5.0
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")
"""Endings of architectures that predict the next token; another one is refused if it is told by its
configuration that it looks both ways."""


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where to load from, and with which options of ``from_pretrained``.

    Args:
        name: a folder, a hub name or ``smollm2``.

    Raises:
        ConfigError: for what cannot be fine-tuned, and a hub that cannot be reached.
    """
    if name == smollm2.NAME:
        smollm2.check()
        return str(smollm2.folder()), {}
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(name, path)
        return str(path), {}
    if path.is_file():
        raise refusal(name, "it is a file", "give the folder that holds it and its config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise refusal(name, "there is no such folder")
    return name, _find_at_hub(name)


def refusal(name: str, reason: str, advice: str | None = None) -> ConfigError:
    """The error for a model that is not loaded, in one line."""
    known = ", ".join([*PRESETS, smollm2.NAME])
    folder = "is a folder, but " if Path(name).expanduser().is_dir() else ""
    usual = (
        f"give a preset ({known}), a folder written by save_pretrained, or a hub name that is "
        "reachable or cached"
    )
    return ConfigError(f"model.name={name}: {folder}cannot be loaded ({reason}); {advice or usual}")


@contextmanager
def said_of(key: str) -> Iterator[None]:
    """Errors of a model inside the block name another key than ``model.name``."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.name=", f"{key}=", 1)) from error


def check_config(name: str, config: Any) -> None:
    """Refuse a model that is no causal language model, or whose weights are rounded for good.

    Raises:
        ConfigError: naming what it is.
    """
    kinds = [str(kind) for kind in getattr(config, "architectures", None) or ()]
    if getattr(config, "is_encoder_decoder", False):
        kind = kinds[0] if kinds else type(config).__name__
        raise refusal(name, f"{kind} reads with an encoder", "give a causal language model")
    causal = any(kind.endswith(_CAUSAL) for kind in kinds)
    both_ways = getattr(config, "is_decoder", None) is False or any("For" in k for k in kinds)
    if kinds and not causal and both_ways:
        raise refusal(
            name, f"{kinds[0]} does not predict the next token", "give a causal language model"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise refusal(
            name,
            f"it is quantised{f' by {method}' if method else ''}, and its weights are trained",
            "give the model that it was made from",
        )


def check_no_adapters(name: str, model: Any) -> None:
    """Refuse a model that was handed in with adapters in it.

    Raises:
        ConfigError: saying what to do.
    """
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise refusal(
            name,
            f"{type(model).__name__} has adapters in it, which could not be resumed",
            "merge them into the model first (merge_and_unload, or mixgym merge)",
        )


def _check_folder(name: str, folder: Path) -> None:
    adapters = [file for file in _ADAPTERS if (folder / file).exists()]
    whole = (folder / CONFIG).exists()
    if adapters:
        beside = " beside a whole model" if whole else ""
        advice = (
            "move those files to a folder of their own and give this one without them"
            if whole
            else "merge it into its base and give the result: mixgym merge "
            f"{name} --base BASE --method linear --out FOLDER"
        )
        raise refusal(name, f"it holds an adapter{beside}, {', '.join(adapters)}", advice)
    if (folder / "config_sentence_transformers.json").exists():
        raise refusal(name, "it is a sentence-transformers model", "give a causal language model")
    found = any(any(folder.glob(pattern)) for pattern in WEIGHTS)
    gguf = sorted(file.name for file in folder.glob("*.gguf"))
    if gguf and not found:
        raise refusal(
            name,
            f"{gguf[0]} is a GGUF file, quantised for inference",
            "give the model that it was made from, or what from_pretrained(gguf_file=...) saves",
        )
    if not whole:
        raise refusal(name, f"it has no {CONFIG}")
    if not found:
        raise refusal(name, "it has a config.json and no weights")


def _find_at_hub(name: str) -> dict[str, Any]:
    """Options under which nothing is asked twice of a hub that does not answer.

    Raises:
        ConfigError: if the model is neither cached nor to be had.
    """
    import huggingface_hub as hub

    try:
        cached = isinstance(hub.try_to_load_from_cache(name, CONFIG), str)
    except ValueError as error:  # not a name that a hub could have
        raise refusal(name, str(error).strip().splitlines()[0]) from error
    if hub.constants.HF_HUB_OFFLINE:
        problem: str | None = "HF_HUB_OFFLINE is set"
    else:
        problem = _ask_hub(name)
    if problem is None:
        return {}
    if cached:
        return {"local_files_only": True}
    raise refusal(name, f"it is neither a folder nor in the cache, and {problem}")


@cache
def _ask_hub(name: str) -> str | None:
    """What is wrong with getting a model from the hub; None: nothing. It is asked once."""
    import huggingface_hub as hub

    url = hub.hf_hub_url(name, CONFIG)
    headers = hub.utils.build_hf_headers()  # type: ignore[attr-defined]
    try:
        answer = hub.get_session().head(
            url, headers=headers, timeout=_HUB_PATIENCE_SECONDS, follow_redirects=True
        )
    except Exception as error:
        return f"{hub.constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    if answer.status_code in (401, 403):
        return "the hub does not give it without a login (hf auth login)"
    if answer.status_code == 404:
        return f"the hub has no {CONFIG} under that name"
    return None if answer.status_code < 400 else f"the hub answers {answer.status_code}"
