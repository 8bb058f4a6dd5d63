"""Configurations are read strictly, and every mistake names its place and its fix."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import RunConfig, dump_config, installed_versions, load_config


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistake(folder: Path, text: str, *overrides: str) -> str:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).replace(str(path), "c.yaml")


def test_no_file_gives_the_defaults() -> None:
    config = load_config(None)
    assert config == RunConfig()
    assert config.sources == "embedded"
    assert (config.agent.name, config.agent.options) == ("uniform", {})
    assert config.run.model_dump() == {
        "dir": "runs/finetune",
        "save_every": 10,
        "keep_last": 2,
        "keep_model": True,
        "tensorboard": True,
        "exact_match": 0,
    }


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# nothing\n")) == RunConfig()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "training: {steps: 5}\nsources: {a: {path: x.jsonl}}\n")
    config = load_config(
        path,
        [
            "training.steps=7",
            "training.steps=8",
            "sources.a.target=0",
            "sources.b={embedded: sort, rows: 9}",
            "agent.options.rate=1e-3",
            "agent.options.weights=[1, 2]",
            "run.dir=runs/a=b",
            "data.over_long=skip",
        ],
    )
    assert config.training.steps == 8
    assert isinstance(config.sources, dict)
    assert config.sources["a"].target == 0
    assert config.sources["b"].rows == 9
    assert config.agent.options == {"rate": 1e-3, "weights": [1, 2]}
    assert config.run.dir == "runs/a=b"
    assert config.data.over_long == "skip"


def test_the_dump_is_complete_and_reads_back(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "sources={no: {path: 'on'}, '010': {path: '1e-3'}}",
            "agent.options={a: 'yes', b: 1e-05, c: null, d: [x, {e: '1:30'}], f: '2001-01-01'}",
            "environment.prior={no: 0.3}",
            "training.learning_rate=1e-7",
        ],
    )
    text = dump_config(config)
    assert load_config(written(tmp_path, text)) == config
    data = yaml.safe_load(text)
    assert data["versions"] == installed_versions()
    assert data["versions"]["stable-baselines3"] != "absent"
    assert set(data["training"]) == set(type(config.training).model_fields)
    assert data["run"]["keep_last"] == 2


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("aé中 '\"#:-?&*!|>%@,[]{}\\\n\t0", max_size=8)
    | st.sampled_from(["no", "1e3", ".5", "1_000", "0x1F", "~", "<<", "=", "12:30", "-.inf", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn<=~0"), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(options=st.dictionaries(st.text("abc0", min_size=1), PLAIN, max_size=3))
def test_any_agent_options_survive_the_dump(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = RunConfig.model_validate({"agent": {"options": options}})
    path = tmp_path_factory.getbasetemp() / "options.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_yaml_words_mean_what_they_say(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "agent: {options: {a: no, b: 1e-3, c: 010, d: 1:30}}"))
    assert config.agent.options == {"a": "no", "b": 1e-3, "c": 10, "d": "1:30"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\ntraining:\n  stpes: 300\n",
            "c.yaml:3: training.stpes: unknown key (value 300); did you mean 'steps'?",
        ),
        (
            "sources:\n  a: {path: x}\n  b:\n    pth: y\n    embedded: sort\n",
            "c.yaml:4: sources.b.pth: unknown key (value \"y\"); did you mean 'path'?",
        ),
        ("sedd: 1\n", "c.yaml:1: sedd: unknown key (value 1); did you mean 'seed'?"),
        (
            "run: {zzzz: {a: 1}}\n",
            'c.yaml:1: run.zzzz: unknown key (value {"a": 1}); '
            "known here: dir, exact_match, keep_last, keep_model, save_every, tensorboard",
        ),
        (
            "training:\n  steps: 0\n",
            "c.yaml:2: training.steps: 0 will not do: must be greater than or equal to 1 "
            "(optimiser steps in the episode (the budget))",
        ),
        (
            "\nenvironment: {prior: balanced}\n",
            "c.yaml:2: environment.prior: \"balanced\" will not do: must be 'uniform', "
            "'proportional' or 'cost_power' (mixture of a zero action: uniform, proportional, "
            "cost_power (the agent corrects that rule), or a weight for every source)",
        ),
        (
            "environment: {prior: {a: -1}}\n",
            "c.yaml:1: environment.prior.a: -1 will not do: must be greater than or equal to 0",
        ),
        ("sources: embeded\n", "c.yaml:1: sources: \"embeded\" will not do: must be 'embedded'"),
        ("data: 3\n", "c.yaml:1: data: 3 will not do: must be mapping"),
        (
            "sources:\n  a: {}\n",
            "c.yaml:2: sources.a: {} will not do: give either path or embedded",
        ),
        (
            "training: {tokens: 9, supervised_tokens: 5}\n",
            'c.yaml:1: training: {"tokens": 9, "supervised_tokens": 5} will not do: these are two '
            "budgets: give tokens or supervised_tokens, not both",
        ),
        ("training: {betas: [0.9]}\n", "c.yaml:1: training.betas.1: missing; give it a value"),
        (
            "sources:\n  a: {path: x}\n  b: {path: x}\n  a: {path: y}\n",
            "c.yaml:4: the key 'a' stands here again, first on line 2; remove or rename one",
        ),
        ("seed: 1\ntrue: 3\n", "c.yaml:2: the key true is not text; write it in quotes"),
        ("- 1\n", "c.yaml: holds [1]; a mapping of options is needed"),
        ("a: [1\n", "c.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "sources: {a.b: {path: x}}\n",
            "c.yaml:1: source name 'a.b': dots, slashes, blanks and = are kept for keys, tags and "
            "overrides; rename it, say to 'a-b'",
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    assert mistake(tmp_path, text) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.stpes=3",
            "command line: training.stpes: unknown key (value 3); did you mean 'steps'?",
        ),
        (
            "trainin.steps=3",
            "command line: trainin: unknown key (value {\"steps\": 3}); did you mean 'training'?",
        ),
        ("steps", "command line: 'steps' is not an override; write key.sub=value"),
        ("a..b=1", "command line: 'a..b=1' is not an override; write key.sub=value"),
        (
            "seed.x=1",
            "command line: 'seed.x=1': seed is 4, which has no keys; set all of it, seed={x: ...}",
        ),
        (
            "training.steps=[1",
            "command line: training.steps:1: not valid YAML: expected ',' or ']', but got "
            "'<stream end>'",
        ),
        (
            "training.steps=many",
            'command line: training.steps: "many" will not do: must be integer, unable to parse '
            "string as an integer (optimiser steps in the episode (the budget))",
        ),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, override: str, message: str) -> None:
    assert mistake(tmp_path, "seed: 4\n", override) == message


def test_every_mistake_has_its_own_line(tmp_path: Path) -> None:
    lines = mistake(tmp_path, "sedd: 1\ntraining: {stpes: 1, steps: 0}\n", "seed=-1").splitlines()
    assert len(lines) == 4
    assert sum("command line: seed: -1" in line for line in lines) == 1


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "missing.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"seed: 1 # \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 10"):
        load_config(path)


def test_shared_parts_of_a_file_may_be_merged(tmp_path: Path) -> None:
    text = "sources:\n  a: &a {path: x, target: 0}\n  b: {<<: *a, path: y}\n"
    config = load_config(written(tmp_path, text))
    assert isinstance(config.sources, dict)
    assert (config.sources["b"].path, config.sources["b"].target) == ("y", 0)


# what depends on the model


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ([], 1e-3),
        (["model.name=5m"], 1e-3),
        (["model.name=smollm2"], 2e-5),
        (["model.name=org/model"], 2e-5),
        (["model.name=./folder", "training.learning_rate=null", "training.steps=3"], 2e-5),
        (["training.learning_rate=null"], 1e-3),
        (["model.name=org/model", "training.learning_rate=0.001"], 1e-3),
        (["training.learning_rate=0.5"], 0.5),
    ],
)
def test_the_learning_rate_is_that_of_the_model(overrides: list[str], rate: float) -> None:
    config = load_config(None, overrides)
    assert config.training.learning_rate == rate
    assert yaml.safe_load(dump_config(config))["training"]["learning_rate"] == rate


def test_a_learning_rate_that_was_written_stays(tmp_path: Path) -> None:
    """The complete configuration of a run says the number, whatever the model is called later."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(None, ["model.name=org/model"])))
    assert load_config(path).training.learning_rate == 2e-5
    assert load_config(path, ["model.name=1m"]).training.learning_rate == 2e-5


def test_options_from_python_depend_on_the_model_too() -> None:
    from mixgym.envs.options import ModelOptions, TrainingOptions, WorldOptions

    model = ModelOptions(name="smollm2")
    found = WorldOptions(model=model, training=TrainingOptions(steps=7))
    assert (found.training.learning_rate, found.training.steps) == (2e-5, 7)
    assert found.data.max_length == 256
    given = TrainingOptions(learning_rate=1e-3)
    assert WorldOptions(model=model, training=given).training.learning_rate == 1e-3


@pytest.mark.parametrize("value", ["0", "-1", "fast"])
def test_a_learning_rate_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        load_config(None, [f"training.learning_rate={value}"])
