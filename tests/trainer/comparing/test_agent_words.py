"""Agents as words of the command line: names, options behind them, labels."""

import pytest

from mixgym.envs.errors import ConfigError
from mixgym.trainer.comparing.entries import agent_options, label_of, labels_of
from mixgym.trainer.config import RunConfig


def test_options_stand_behind_a_name() -> None:
    config = RunConfig()
    found = agent_options(config, "random_pieces:draw=3:at=[]:concentration=1.0")
    assert found.name == "random_pieces"
    assert found.options == {"draw": 3, "at": [], "concentration": 1.0}
    assert agent_options(config, "runs/mine").options == {}


def test_options_of_the_configuration_are_kept_and_added_to() -> None:
    agent = {"name": "cost_power", "options": {"pool": 0.5, "cost_exponent": 1.0}}
    config = RunConfig.model_validate({"agent": agent})
    assert agent_options(config, "cost_power").options == agent["options"]
    changed = agent_options(config, "cost_power:cost_exponent=0.2").options
    assert changed == {"pool": 0.5, "cost_exponent": 0.2}
    assert agent_options(config, "temperature").options == {}
    assert config.agent.options["cost_exponent"] == 1.0


def test_labels_are_names_of_folders() -> None:
    agents = ["uniform", "runs/mine", "cost_power:cost_exponent=0.3", "random_pieces:at=[]"]
    labels = labels_of(agents)
    assert list(labels.values()) == agents
    assert list(labels)[:3] == ["uniform", "mine", "cost_power-cost_exponent-0.3"]
    assert all(not set(label) & set("/:=[]") for label in labels)
    assert label_of("temperature:tau=2") != label_of("temperature:tau=3")


@pytest.mark.parametrize("agent", ["cost_power:", "cost_power:cost_exponent", "cost_power:=3"])
def test_an_option_without_a_value_is_refused(agent: str) -> None:
    with pytest.raises(ConfigError, match=r"write options as NAME:key=value"):
        agent_options(RunConfig(), agent)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two are called"):
        labels_of(["a/x", "b/x"])
