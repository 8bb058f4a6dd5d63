from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.build import build_environment
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.exact_match import _ends, _share, answer_of, exact_match, is_checkable
from mixgym.envs.options import WorldOptions
from mixgym.envs.sources.source import EncodedRows


@pytest.fixture
def learner(tmp_path: Path) -> CausalLM:
    """A tiny model on a generated source, one in the style of GSM8K, and one of free text."""
    rows = {
        "gsm": '{{"question": "what is {n} and {n}", "answer": "add them\\n#### {m:,}"}}\n',
        "prose": '{{"prompt": "tell {n}", "completion": "a tale of {m} words"}}\n',
    }
    sources: dict[str, Any] = {"sorting": {"embedded": "sorting", "rows": 60}}
    for name, line in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(line.format(n=n, m=2 * n) for n in range(700, 740)))
        sources[name] = {"path": str(path)}
    world = WorldOptions.model_validate({"sources": sources, "data": {"max_length": 64}})
    learner = build_environment(world).world.learner
    assert isinstance(learner, CausalLM)
    return learner


def references(learner: CausalLM, change: bool) -> Any:
    """A stand-in for ``generate`` that knows every answer by its prompt, or spoils all of them."""
    known = {}
    for source in learner.sources:
        held_out = source.splits["test"]
        for row in range(len(held_out)):
            tokens, labels = held_out.row(row)
            first = int(np.argmax(labels))
            known[tuple(tokens[:first].tolist())] = tokens[first:].tolist()

    def generate(
        *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        answers = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            answer = known[tuple(ids[mask.bool()].tolist())]
            answers.append([*answer[:1], *answer] if change else answer)
        longest = max(map(len, answers))
        end = learner.tokenizer.eos_token_id
        padded = torch.tensor([answer + [end] * (longest - len(answer)) for answer in answers])
        return torch.cat([input_ids, padded], dim=1)

    return generate


def test_right_answers_count_and_wrong_ones_do_not(
    learner: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner.model, "generate", references(learner, change=False))
    assert exact_match(learner, "test", 40) == {"sorting": 1.0, "gsm": 1.0}
    monkeypatch.setattr(learner.model, "generate", references(learner, change=True))
    found = exact_match(learner, "test", 40)
    assert found["sorting"] == 0.0
    assert found["gsm"] == 1.0  # the number behind the mark is still right


def test_only_what_can_be_checked_is_checked(learner: CausalLM) -> None:
    checkable = [s.name for s in learner.sources if is_checkable(s, learner.tokenizer, "test")]
    assert checkable == ["sorting", "gsm"]


def test_the_learner_is_left_as_it_was(learner: CausalLM) -> None:
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.model.train()
    found = exact_match(learner, "test", 2)
    assert set(found) == {"sorting", "gsm"}
    assert learner.model.training
    assert learner.model.config._attn_implementation == learner.attention
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_prompt_decodes_the_same_alone_and_padded_beside_a_longer_one(learner: CausalLM) -> None:
    from mixgym.envs.learners.exact_match import _decode

    learner.model.set_attn_implementation("sdpa")
    learner.model.eval()
    short, long = np.arange(5, 10), np.arange(30, 60)
    both = _decode(learner, [short, long], 6)
    assert both == [_decode(learner, [short], 6)[0], _decode(learner, [long], 6)[0]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 1,200", "1200"),
        ("#### 3 then #### 4.", "4"),
        ("  forty two\n", "forty two"),
        ("", ""),
    ],
)
def test_what_is_compared(text: str, answer: str) -> None:
    assert answer_of(text) == answer


# decoding


SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1},
    {"do_sample": True, "temperature": 3.0, "top_k": 5},
    {"num_beams": 3, "length_penalty": 2.0},
    {"min_new_tokens": 5, "suppress_tokens": [7, 9], "bad_words_ids": [[11]]},
    {"max_new_tokens": 1, "max_length": 3},
    {"forced_bos_token_id": 4, "begin_suppress_tokens": [2]},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_the_checkpoint_are_not_obeyed(
    learner: CausalLM, settings: dict[str, Any]
) -> None:
    """Greedy is greedy: the likeliest token after every prefix, by an ordinary call."""
    from mixgym.envs.learners.exact_match import _decode, _decoding

    prompts = [np.arange(5, 10), np.arange(40, 52)]
    learner.model.generation_config.update(**settings)
    given = learner.model.generation_config
    with _decoding(learner):
        found = _decode(learner, prompts, 6)
    assert learner.model.generation_config is given
    learner.model.set_attn_implementation("eager")
    learner.model.eval()
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        for _ in range(6):
            with torch.no_grad():
                token = learner.model(ids, use_cache=False).logits[:, -1].argmax(-1)
            ids = torch.cat([ids, token[None]], dim=1)
            if int(token) == learner.tokenizer.eos_token_id:
                break
        wanted = learner.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        assert text == wanted


def test_an_answer_is_as_long_whatever_is_decoded_beside_it(
    learner: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One limit for all rows of a split, however many are asked for and however they are cut."""
    seen: dict[str, set[int]] = {}
    for batch in (1, 3, 16):
        monkeypatch.setattr("mixgym.envs.learners.exact_match.BATCH", batch)
        for rows in (1, 4, 9):
            limits = seen.setdefault("all", set())
            model = learner.model
            real = type(model).generate

            def generate(*args: Any, real: Any = real, limits: Any = limits, **named: Any) -> Any:
                limits.add(named["generation_config"].max_new_tokens)
                return real(learner.model, *args, **named)

            monkeypatch.setattr(model, "generate", generate)
            only = [s for s in learner.sources if s.name == "gsm"]
            monkeypatch.setattr(learner, "sources", only)
            exact_match(learner, "test", rows)
    longest = int(only[0].splits["test"].supervised.max()) + 8
    assert seen["all"] == {longest}


def test_a_prompt_at_the_end_of_the_positions_cuts_no_other(learner: CausalLM) -> None:
    from mixgym.envs.learners.exact_match import _batches

    assert list(_batches([5, 96, 7, 100], 8, 100)) == [([0, 2], 8), ([1], 4)]
    assert list(_batches([5] * 20, 8, None)) == [(list(range(16)), 8), (list(range(16, 20)), 8)]


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_models_without_sdpa_are_decoded(learner: CausalLM, kind: str) -> None:
    """Soft caps are eager's alone, and so are sinks; the learner keeps its own attention."""
    import transformers

    from mixgym.envs.options import ModelOptions, TrainingOptions

    sizes: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "eos_token_id": 0,
        "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "gpt_oss":
        sizes |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    name = "Gemma2Config" if kind == "gemma2" else "GptOssConfig"
    config = getattr(transformers, name)(**sizes)
    other = CausalLM(
        lambda: transformers.AutoModelForCausalLM.from_config(config),
        learner.tokenizer,
        learner.sources,
        max_length=64,
        model_options=ModelOptions(),
        training=TrainingOptions(),
        seed=0,
    )
    other.model.train()
    assert set(exact_match(other, "test", 2)) == {"sorting", "gsm"}
    assert other.model.config._attn_implementation == other.attention
    assert other.model.training


def test_the_end_that_a_chat_template_writes_ends_answers(
    learner: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is no end token of the tokenizer: what follows it is not compared."""
    tokenizer = learner.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn, eos = tokenizer.convert_tokens_to_ids("<turn>"), tokenizer.eos_token_id
    source = learner.sources[0]
    rows = source.splits["test"]
    ended = EncodedRows.from_lists(
        [
            (np.where(tokens == eos, turn, tokens).astype(np.int32), labels)
            for tokens, labels in map(rows.row, range(len(rows)))
        ]
    )
    source.splits["test"] = ended  # type: ignore[index]
    answers = references(learner, change=False)

    def generate(*, generation_config: Any, **arguments: Any) -> torch.Tensor:
        assert set(generation_config.eos_token_id) == {turn, eos}
        found: torch.Tensor = answers(**arguments)
        return found

    monkeypatch.setattr(learner.model, "generate", generate)
    assert _share(learner, ended, 4) == 1.0


def test_a_token_of_plain_text_ends_no_answer(learner: CausalLM) -> None:
    rows = EncodedRows.from_lists(
        [(np.array([5, 6, 40], np.int32), np.array([False, True, True]))] * 3
    )
    assert _ends(rows, learner.tokenizer) == set()
