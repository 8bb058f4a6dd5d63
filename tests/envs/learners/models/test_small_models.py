from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mixgym.envs.learners.models import small_models as presets
from mixgym.envs.learners.models.small_models import PRESETS, build_model, build_tokenizer

TEXTS = [f"What is {a} + {b}? The answer is {a + b}." for a in range(40) for b in range(9)]
STRANGE = [
    "",
    " ",
    "  two  spaces \t\n\r\n",
    "naïve café — 日本語 Привет नमस्ते 🙂\u200d👩‍🚀",
    "\x00\x01\x7f\u0085\u2028",
    "".join(map(chr, range(0x20, 0x250))),
    "e\u0301 é",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_has_the_parameters_it_says(name: str) -> None:
    preset = PRESETS[name]
    model = build_model(preset, seed=0, max_positions=256)
    assert model.num_parameters() == preset.parameters
    assert {"0.1m": 115_008, "1m": 935_040, "5m": 5_065_472}[name] == preset.parameters
    assert model.config.vocab_size == preset.vocabulary
    assert model.config.max_position_embeddings >= 512


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(4)
    stream, numpy_stream = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = build_model(PRESETS["0.1m"], seed=1, max_positions=64)
    assert torch.equal(torch.get_rng_state(), stream)
    assert np.array_equal(np.random.get_state()[1], numpy_stream)  # noqa: NPY002
    torch.manual_seed(5)
    again = build_model(PRESETS["0.1m"], seed=1, max_positions=64)
    other = build_model(PRESETS["0.1m"], seed=2, max_positions=64)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_long_rows_fit() -> None:
    assert (
        build_model(PRESETS["0.1m"], seed=0, max_positions=5000).config.max_position_embeddings
        == 5000
    )


def test_every_text_survives() -> None:
    tokenizer = build_tokenizer(TEXTS, 512)
    for text in STRANGE + TEXTS[:5]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < 512
    assert len(tokenizer) <= 512
    assert tokenizer.is_fast
    assert tokenizer.eos_token == tokenizer.pad_token == presets.END
    assert tokenizer.eos_token_id == 0


def test_the_tokenizer_is_deterministic(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tokenizer(TEXTS, 300)
    (folder,) = cache.iterdir()
    first = (folder / "tokenizer.json").read_bytes()
    monkeypatch.setenv("MIXGYM_CACHE", str(cache.parent / "elsewhere"))
    build_tokenizer(iter(TEXTS), 300)
    (other,) = (cache.parent / "elsewhere").iterdir()
    assert other.name == folder.name
    assert (other / "tokenizer.json").read_bytes() == first


def test_the_tokenizer_is_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = build_tokenizer(TEXTS, 300).get_vocab()
    monkeypatch.setattr(presets, "_train", lambda *_: pytest.fail("trained again"))
    assert build_tokenizer(TEXTS, 300).get_vocab() == wanted
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("texts", "vocabulary"),
    [(TEXTS[:-1], 300), (TEXTS, 301), (["".join(TEXTS)], 300), ([*TEXTS, ""], 300)],
)
def test_other_text_is_another_entry(cache: Path, texts: list[str], vocabulary: int) -> None:
    build_tokenizer(TEXTS, 300)
    build_tokenizer(texts, vocabulary)
    assert len(list(cache.iterdir())) == 2


def test_text_past_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "TOKENIZER_TEXT_BYTES", 20)

    def texts() -> Iterator[str]:
        yield "0123456789"
        yield "é" * 5
        pytest.fail("read on")

    build_tokenizer(texts(), 300)


def test_no_text_gives_bytes() -> None:
    tokenizer = build_tokenizer([], 512)
    assert len(tokenizer) == 257
    assert tokenizer.decode(tokenizer(STRANGE[3])["input_ids"]) == STRANGE[3]


def test_a_slower_process_takes_what_the_faster_one_left(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race, step by step: the folder appears while we train."""
    original = presets._train

    def train(texts: list[str], vocabulary: int) -> object:
        monkeypatch.setattr(presets, "_train", original)
        build_tokenizer(TEXTS, 300)
        return original(texts, vocabulary)

    monkeypatch.setattr(presets, "_train", train)
    assert len(build_tokenizer(TEXTS, 300)) == 300
    assert len(list(cache.iterdir())) == 1
