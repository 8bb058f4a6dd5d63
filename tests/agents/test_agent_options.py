"""Options of agents: what is listed is what is taken, and what is not taken is refused by name."""

import pytest

from mixgym.agents.agent_options import check_options, options_of
from mixgym.agents.registry import ALGORITHMS
from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import AgentOptions
from mixgym.trainer.finetuning.assembly import find_agent


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_says_what_it_takes(name: str) -> None:
    keys = [option.name for option in options_of(name)]
    assert len(set(keys)) == len(keys)
    assert all(
        key.startswith(("agent.options.", "train.options.", "train.policy.")) for key in keys
    )
    assert not {key.rpartition(".")[2] for key in keys} & {"env", "names", "self", "level"}


def test_a_rule_has_the_defaults_and_words_of_its_class() -> None:
    (tau,) = options_of("temperature")
    assert (tau.name, tau.default) == ("agent.options.tau", 3.0)
    assert "temperature" in tau.about
    assert options_of("uniform") == []


def test_a_preset_stands_over_the_defaults_of_the_class() -> None:
    found = {option.name: option.default for option in options_of("ppo")}
    assert found["train.options.n_steps"] == 8  # Stable-Baselines3 has 2048
    assert found["train.policy.width"] == 32  # the policy has 64
    assert found["train.options.target_kl"] is None


def test_hbo_acts_and_is_trained_and_its_variants_differ() -> None:
    def of(name: str) -> dict[str, object]:
        return {option.name: option.default for option in options_of(name)}

    assert {"agent.options.global.floor", "train.options.n_epochs"} <= set(of("hbo"))
    assert of("hbo_paper")["agent.options.preset"] == "paper"
    assert of("hbo_paper")["agent.options.global.actor"] == "mlp"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("temperature", {"tua": 2}, r"agent\.options\.tua: temperature .* did you mean tau\?"),
        ("exp3", {"zz": 1}, r"agent\.options\.zz: exp3 .*known: variant, rate, explore"),
        ("uniform", {"tau": 2}, "uniform has no such option; it takes none"),
    ],
)
def test_an_unknown_option_names_those_that_there_are(
    name: str, given: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_options(name, given)
    with pytest.raises(ConfigError, match=words):
        find_agent(AgentOptions(name=name, options=given)).make(None, ())


@pytest.mark.parametrize("name", ["runs/nothing", "./nothing", "~/no such folder here"])
def test_a_folder_that_is_not_there_is_said_to_be_none(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        find_agent(AgentOptions(name=name))
