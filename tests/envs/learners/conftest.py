import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.options import ModelOptions, TrainingOptions
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport
from mixgym.envs.spaces.mixture import Mixture

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 61
LONGEST = 32


def tiny_model(kind: str, **changes: Any) -> Any:
    """A seeded model of two layers whose attention matters: its weights are large."""
    import torch
    import transformers

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "head_dim": 4}
        sizes |= {"num_key_value_heads": 4 if kind == "llama" else 2}
    names = {"llama": "Llama", "qwen2": "Qwen2", "gpt2": "GPT2", "gemma": "Gemma"}
    names |= {"gemma2": "Gemma2", "mistral": "Mistral", "gemma3": "Gemma3"}
    name = names[kind]
    config_name = "Gemma3TextConfig" if kind == "gemma3" else f"{name}Config"
    suffix = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = getattr(transformers, config_name)(**(sizes | changes))
        return getattr(transformers, f"{name}{suffix}")(config)


class Saved:
    """A tokenizer that only has to be saved."""

    def save_pretrained(self, folder: Any) -> None:
        pass


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return tiny_model


def encoded(generator: np.random.Generator, lengths: Sequence[int]) -> EncodedRows:
    """Rows of random tokens with a prompt of random length."""
    rows = []
    for length in lengths:
        prompt = int(generator.integers(1, length))
        tokens = generator.integers(0, VOCABULARY, length).astype(np.int32)
        rows.append((tokens, np.arange(length) >= prompt))
    return EncodedRows.from_lists(rows)


@pytest.fixture(scope="session")
def sources() -> tuple[Source, ...]:
    """Two sources of two strata; one has no held-out row in its second stratum."""
    generator = np.random.default_rng(0)
    made = []
    for k, name in enumerate(("first", "second")):
        splits, strata = {}, {}
        for split, count in (("train", 16), ("reward", 7), ("select", 3), ("test", 0)):
            splits[split] = encoded(generator, generator.integers(4, 20, count).tolist())
            strata[split] = np.arange(count) % 2
        if k:
            strata["reward"] = np.zeros(7, np.int64)
        report = SourceReport(name, "text")
        made.append(Source(name, 1.0, splits, strata, 2, None, report))
    return tuple(made)


@pytest.fixture(scope="session")
def make_pack(sources: tuple[Source, ...]) -> Callable[..., Pack]:
    def make(rows: Sequence[tuple[int, int]], weight: float = 1.0) -> Pack:
        """A pack of (source, row) pairs of the train split."""
        where = [(k, int(sources[k].strata["train"][i]), i) for k, i in rows]
        lengths = [int(sources[k].splits["train"].lengths[i]) for k, i in rows]
        return Pack(np.array(where), np.array(lengths), sum(lengths), weight)

    return make


@pytest.fixture(scope="session")
def make_plan(sources: tuple[Source, ...]) -> Callable[[Sequence[Sequence[Pack]]], IntervalPlan]:
    def make(steps: Sequence[Sequence[Pack]]) -> IntervalPlan:
        totals = np.zeros((3, 2, 2), np.int64)
        for pack in (pack for step in steps for pack in step):
            for k, g, i in pack.rows.tolist():
                rows = sources[k].splits["train"]
                totals[:, k, g] += (1, rows.lengths[i], rows.supervised[i])
        mixture = Mixture(np.full(2, 0.5), np.full((2, 2), 0.5))
        return IntervalPlan(mixture, tuple(tuple(step) for step in steps), *totals)

    return make


@pytest.fixture
def make_learner(sources: tuple[Source, ...]) -> Callable[..., CausalLM]:
    def make(
        kind: str = "llama",
        model: dict[str, Any] | None = None,
        sources: Sequence[Source] = sources,
        change: Callable[[Any], Any] = lambda model: model,
        config: dict[str, Any] | None = None,
        **training: Any,
    ) -> CausalLM:
        defaults = {"steps": 10, "schedule": "constant", "warmup": 0.0, "learning_rate": 1e-2}
        return CausalLM(
            lambda: change(tiny_model(kind, **(config or {}))),
            Saved(),
            sources,
            max_length=LONGEST,
            model_options=ModelOptions.model_validate(model or {}),
            training=TrainingOptions.model_validate(defaults | training),
            seed=3,
        )

    return make
