import pytest

from mixgym.agents.mixers import needs
from mixgym.agents.registry import ALGORITHMS, find_algorithm
from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError
from mixgym.envs.probes import PROBES

MIXERS = {n: a for n, a in ALGORITHMS.items() if a.factory.startswith("mixgym.agents.mixers")}


def test_all_published_mixers_are_registered() -> None:
    assert set(MIXERS) == {
        *("exp3", "ucb", "doremi", "doge", "multidds", "mos", "aioli", "ado", "rho_loss", "less"),
        *("loss_proportional", "easy_to_hard", "hard_to_easy"),
    }


@pytest.mark.parametrize("name", MIXERS)
def test_every_probe_that_a_mixer_needs_exists(name: str) -> None:
    wanted = find_algorithm(name).needs({})
    assert wanted == MIXERS[name].requires
    assert wanted.action == "weights"
    assert set(wanted.probes) <= set(PROBES)


def test_needs_follow_the_options() -> None:
    assert needs.doge({"mode": "universal", "period": 7}).probes == {"gradient_influence": 7}
    assert needs.mos({"reward": "difficulty"}).probes == {"perplexity_ratio": 4}
    assert needs.doremi({}) == Requires("weights", "dict", True, reference=True)
    tokens = needs.doremi({"clip": "tokens", "period": 2})
    assert tokens.probes == {"excess_loss": 2}
    assert tokens.reference


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("doge", {"mode": "all"}, r"agent\.options\.mode=all: unknown \(known: target, universal"),
        ("mos", {"reward": "loss"}, r"agent\.options\.reward=loss: unknown"),
        ("doremi", {"clip": "rows"}, r"agent\.options\.clip=rows: unknown"),
        ("less", {"period": 0}, r"agent\.options\.period=0: must be a whole number, 1 or more"),
        ("multidds", {"period": 1.5}, r"agent\.options\.period=1\.5: must be a whole number"),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(
    name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        find_algorithm(name).needs(options)


def test_costs_in_words() -> None:
    assert needs.cost(Requires()) == ""
    assert needs.cost(Requires(reference=True)) == "environment.reference"
    assert needs.cost(needs.mos({})) == (
        "cosine_similarity every 4 decisions: 1 pass over its probe rows"
    )
    free = Requires(probes={"training_loss_ratio": 1}, reference=True)
    assert needs.cost(free) == (
        "training_loss_ratio every 1 decisions: nothing; environment.reference"
    )
    assert MIXERS["doge"].summary.endswith(f"({needs.cost(MIXERS['doge'].requires)})")
