"""Which environment an agent needs: the one place that answers it, whoever asks.

An agent that drives a fine-tuning run, one that is trained, one that is judged on the fast world or
looked at by the doctor: what it needs is a :class:`~mixgym.agents.requires.Requires`, and what the
environment then is follows here.
"""

from collections.abc import Mapping
from typing import Any

from mixgym.agents.requires import Requires
from mixgym.envs.errors import ConfigError
from mixgym.envs.learners.kinds import LEARNERS, LearnerName
from mixgym.envs.options import EnvironmentOptions
from mixgym.trainer.config import RunConfig

Learner = LearnerName


def environment_for(
    needs: Requires, config: RunConfig, *, learner: LearnerName | None = None
) -> RunConfig:
    """The configuration with the environment that ``needs`` asks for; all else stays as it is.

    Args:
        needs: of an agent, or of those that are to be trained or judged.
        config: what was configured.
        learner: another learner than the configured one. ``curves`` is the fast world, whose tasks
            have sizes and a reference of their own.

    Raises:
        ConfigError: if a reference model is needed and none is configured.
    """
    given = config.environment
    update: dict[str, Any] = {"action": needs.action, "observation": needs.observation}
    if needs.probes:
        update["probes"] = merged_probes(given.probes, needs.probes)
    if needs.probe_at_start:
        update["probe_at_start"] = True
    if needs.step_rule != "plain":
        update["step_rule"] = needs.step_rule
    if learner is not None:
        update["learner"] = learner
    if learner is not None and LEARNERS[learner].closed_form:
        update |= {"max_sources": None, "max_strata": None}
        update |= {"reference": learner} if needs.reference else {}
    elif needs.reference and given.reference is None:
        raise ConfigError(
            f"environment.reference: {config.agent.name} reads the losses of a reference model; "
            "give the folder of one"
        )
    settings = dict(needs.settings)
    if not isinstance(given.prior, str):
        settings.pop("prior", None)  # an agent sees the prior, and corrects weights by name too
    environment = given.model_copy(update={**update, **settings})
    return config.model_copy(update={"environment": environment})


def as_configured(options: EnvironmentOptions) -> Requires:
    """What an agent needs that is trained under ``options``: their action kind, seen flat."""
    return Requires(action=options.action)


def merged_probes(given: Mapping[str, int], needed: Mapping[str, int]) -> dict[str, int]:
    """Probes that somebody asked for, each at the smaller of its periods.

    >>> merged_probes({"loss": 4}, {"loss": 2, "gradient_norm": 3})
    {'loss': 2, 'gradient_norm': 3}
    """
    periods = dict(given)
    for name, period in needed.items():
        periods[name] = min(period, periods.get(name, period))
    return periods
