"""An agent acts around the prior that it was trained with, unless weights are given by name."""

from mixgym.agents.requires import Requires
from mixgym.trainer.config import RunConfig
from mixgym.trainer.environment_needs import environment_for


def test_the_prior_of_an_agents_card_is_kept():
    needs = Requires(settings={"prior": "cost_power", "reach": 0.7})
    found = environment_for(needs, RunConfig()).environment
    assert (found.prior, found.reach) == ("cost_power", 0.7)
    assert environment_for(Requires(), RunConfig()).environment.prior == "uniform"


def test_weights_by_name_stay():
    config = RunConfig.model_validate({"environment": {"prior": {"a": 1.0, "b": 3.0}}})
    needs = Requires(settings={"prior": "cost_power"})
    assert environment_for(needs, config).environment.prior == {"a": 1.0, "b": 3.0}
