from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.build import build_environment
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.exact_match import answer_of, exact_match, is_checkable
from mixgym.envs.options import WorldOptions


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
