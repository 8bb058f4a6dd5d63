import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mixgym.envs.errors import ConfigError
from mixgym.envs.sources.loading import read_sources
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, dump_config, load_config
from mixgym.trainer.config_schema import config_schema
from mixgym.trainer.first_config import write_first_config

ROW = json.dumps({"prompt": "q", "completion": "a", "id": 1}) + "\n"


def resolved(schema, part):
    name = part.get("$ref", "").rpartition("/")[2]
    return schema["$defs"][name] if name else part


def test_the_schema_has_every_key_and_no_other():
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert schema == config_schema()
    assert set(schema["properties"]) == {*RunConfig.model_fields, "versions"}
    assert schema["additionalProperties"] is False
    for name, field in RunConfig.model_fields.items():
        if name in ("sources", "seed", "plugins"):
            continue
        section = resolved(schema, schema["properties"][name])
        assert set(section["properties"]) == set(field.annotation.model_fields), name
        assert section["additionalProperties"] is False
    source = schema["$defs"]["SourceOptions"]
    assert source["properties"]["columns"]["additionalProperties"] == {"type": "string"}
    assert "save_to_disk" in source["properties"]["path"]["description"]
    rate = schema["$defs"]["TrainingOptions"]["properties"]["learning_rate"]
    assert {"type": "null"} in rate["anyOf"]


def test_configurations_are_valid_by_the_schema():
    validation = pytest.importorskip("jsonschema")
    schema = config_schema()
    own = {"sources": {"a": {"path": ["a.csv", "b/*.parquet"], "columns": {"q": "prompt"}}}}
    for text in (dump_config(RunConfig()), yaml.safe_dump(own), "training: {learning_rate: null}"):
        validation.validate(yaml.safe_load(text), schema)
    with pytest.raises(validation.ValidationError, match="unifrom"):
        validation.validate({"agent": {"unifrom": 1}}, schema)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "my data"
    for name in (
        "math/train.jsonl",
        "math/test.jsonl",
        "chat.v1.jsonl",
        "logs-00001-of-00002.jsonl",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW * 9)
    (folder / "logs-00000-of-00002.jsonl").write_text(ROW * 5 + "{\n")
    (folder / "odd.csv").write_text("ask,reply\n1,2\n")
    (folder / "notes.txt").write_text("nothing")
    (folder / "empty").mkdir()
    return folder


def test_a_first_configuration_is_valid_and_names_what_was_found(data: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(data)])
    assert result.exit_code == 0, result.output
    text = (data / "mixgym.yaml").read_text()
    config = load_config(data / "mixgym.yaml", ["data.malformed=skip"])
    assert {
        name: len(raw.rows["train"])
        for name, raw in zip(config.sources, read_sources(config), strict=True)
    } == {"chat-v1": 6, "logs": 11, "math": 7}
    assert 'math":  # rows: train 9, test 9; format: prompt; not used: id' in text
    assert "1 malformed" in text
    assert '# "odd": {path:' in text
    assert "columns 'ask', 'reply' are no known format" in text
    assert config.run.dir == "runs/my-data"


def test_nothing_is_overwritten(data: Path, tmp_path: Path) -> None:
    (data / "mixgym.yaml").write_text("seed: 3\n")
    result = CliRunner().invoke(app, ["init", str(data)])
    assert result.exit_code == 2
    assert "is not overwritten" in result.output
    assert (data / "mixgym.yaml").read_text() == "seed: 3\n"
    out = tmp_path / "other.yaml"
    assert write_first_config(data, out) == out
    with pytest.raises(ConfigError, match=r"other.yaml: is there already"):
        write_first_config(data, out)


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_first_config(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"holds no source .no file of a type that is read"):
        write_first_config(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"ask": 1}\n')
    with pytest.raises(ConfigError, match=r"holds no source .*a.jsonl line 1: columns 'ask'"):
        write_first_config(tmp_path)
    assert not (tmp_path / "mixgym.yaml").exists()


def test_a_folder_with_a_train_file_is_one_source(data: Path) -> None:
    path = write_first_config(data / "math")
    assert list(load_config(path).sources) == ["math"]
