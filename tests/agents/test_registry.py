import subprocess
import sys
from typing import Any

import pytest

from mixgym.agents.registry import ALGORITHMS, Algorithm, find_algorithm
from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError
from mixgym.envs.registration import make_mixture_env


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_be_loaded_and_says_what_it_is(name: str) -> None:
    algorithm = find_algorithm(name)
    assert callable(algorithm.load())
    assert algorithm.summary
    assert "\n" not in algorithm.summary


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_asks_for_an_environment_that_exists(name: str) -> None:
    needs = find_algorithm(name).needs({})
    options = {"action": needs.action, "observation": needs.observation}
    env = make_mixture_env(environment=options)
    assert not needs.signals or "signals" in env.observation_space.spaces  # type: ignore[attr-defined]


def test_what_an_algorithm_needs_may_depend_on_its_options() -> None:
    fixed = Algorithm("a rule", "nowhere:Nothing", Requires(action="weights"))
    assert fixed.needs({"period": 3}) is fixed.requires
    asking = Algorithm("asks", "nowhere:Nothing", Requires(), f"{__name__}:needs_of_period")
    assert asking.needs({"period": 3}).probes == {"gradient_norm": 3}
    assert asking.needs({}).probes == {"gradient_norm": 1}


def needs_of_period(options: dict[str, Any]) -> Requires:
    return Requires(probes={"gradient_norm": options.get("period", 1)})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unifrom: unknown algorithm; did you mean uniform"):
        find_algorithm("unifrom")
    with pytest.raises(ConfigError, match="known: uniform"):
        find_algorithm("zzz")


def test_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, mixgym.agents.registry as r; "
        "print([m for m in ('torch', 'stable_baselines3', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
