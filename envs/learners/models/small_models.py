"""Small models that need no download: three presets, and tokenizers trained on the user's rows.

A tokenizer is a byte-level BPE whose vocabulary fits the preset. Training is deterministic and
cached by the content of the text, in ``$MIXGYM_CACHE`` or the user's cache folder.
"""

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixgym.envs.sources.cached import keys

END = "<|endoftext|>"
TOKENIZER_TEXT_BYTES = 4_000_000  # per tokenizer: more does not change so small a vocabulary


@dataclass(frozen=True)
class Preset:
    """A Llama-shaped model with tied embeddings.

    Attributes:
        vocabulary, hidden, layers, heads, feed_forward: the usual sizes.
        parameters: in all.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    parameters: int


PRESETS = {
    "0.1m": Preset(512, 64, 2, 4, 128, 115_008),
    "1m": Preset(1024, 128, 4, 4, 352, 935_040),
    "5m": Preset(4096, 256, 5, 8, 704, 5_065_472),
}


def make_config(preset: Preset, max_positions: int) -> Any:
    """The LlamaConfig of a preset."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.hidden,
        intermediate_size=preset.feed_forward,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        max_position_embeddings=max(max_positions, 2048),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=True,
    )


def build_model(preset: Preset, *, seed: int, max_positions: int) -> Any:
    """A randomly initialised LlamaForCausalLM; the global random stream is left as it was."""
    import torch
    from transformers import LlamaForCausalLM

    config = make_config(preset, max_positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Train (or find in the cache) a byte-level BPE with ``vocabulary`` entries at most.

    Args:
        texts: training text; the first :data:`TOKENIZER_TEXT_BYTES` are used, so give the sources
            in turn rather than one after the other.
        vocabulary: entries, the end token included.
    """
    from transformers import PreTrainedTokenizerFast

    used = _first_bytes(texts, TOKENIZER_TEXT_BYTES)
    folder = cache_folder() / f"tokenizer-{_digest(used, vocabulary)}"
    if not (folder / "tokenizer.json").exists():
        _store(_train(used, vocabulary), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def cache_folder() -> Path:
    """``$MIXGYM_CACHE``, or ``mixgym`` in the user's cache folder; created if missing."""
    folder = keys.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _first_bytes(texts: Iterable[str], limit: int) -> list[str]:
    used, size = [], 0
    for text in texts:
        used.append(text)
        size += len(text.encode())
        if size >= limit:
            break
    return used


def _digest(texts: list[str], vocabulary: int) -> str:
    import tokenizers

    digest = hashlib.sha256(f"{tokenizers.__version__} {vocabulary}".encode())
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text.encode())
    return digest.hexdigest()[:24]


def _train(texts: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _store(tokenizer: Any, folder: Path) -> None:
    """Write beside and rename, so that two processes cannot see half a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
        fast.save_pretrained(Path(name) / "new")
        try:
            (Path(name) / "new").rename(folder)
        except OSError:
            if not (folder / "tokenizer.json").exists():
                raise
