"""The runs of a comparison: every agent at every seed, on one mixture or on many real tasks.

At a seed all agents start from the same weights and meet the same splits and the same order of rows
within each source. They get the same budget: by default the same steps, of as many tokens each,
which is equal compute; or the same supervised tokens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixgym.envs.errors import ConfigError
from mixgym.trainer.config import AgentOptions, RunConfig
from mixgym.trainer.reports.dry_run import make_plan
from mixgym.trainer.strict_yaml import parse_yaml
from mixgym.trainer.tasks.materialise import materialise, on_task
from mixgym.trainer.tasks.pool import find_pool
from mixgym.trainer.tasks.real_tasks import real_tasks

TOKENS, SUPERVISED = "tokens", "supervised_tokens"
BUDGETS = (TOKENS, SUPERVISED)
"""What all runs can have as much of: tokens read, or supervised tokens."""

RECORDS_ONLY = {"keep_model": False, "keep_last": 0, "tensorboard": False}
"""What runs on real tasks leave, unless the configuration says otherwise: they are many."""


@dataclass(frozen=True)
class TaskChoice:
    """Real tasks to compare on.

    Attributes:
        name: of their set.
        pool: folder of the sources that they are drawn from; None: that of ``MIXGYM_DATA``.
        limit: how many, from the first on; None: all.
    """

    name: str
    pool: Path | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        task: name of the real task; None where there is one mixture.
        agent: label of the agent.
        seed: what runs are paired by, together with the task.
        config: of the run.
    """

    task: str | None
    agent: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """What it is called in reports."""
        where = () if self.task is None else (self.task,)
        return " ".join([*where, self.agent, f"seed {self.seed}"])


def labels_of(agents: Sequence[str]) -> dict[str, str]:
    """Short name of a run folder or algorithm -> the agent as it was given.

    Raises:
        ConfigError: for fewer than two, or two of one name.
    """
    labels: dict[str, str] = {}
    for agent in agents:
        label = label_of(agent)
        if label in labels:
            raise ConfigError(f"--agents: two are called {label!r}: rename one of the folders")
        labels[label] = agent
    if len(labels) < 2:
        raise ConfigError(
            "--agents: give at least two, separated by commas; the first is compared with"
        )
    return labels


def label_of(agent: str) -> str:
    """What an agent is called in tables and folders.

    >>> label_of("runs/mine"), label_of("cost_power:cost_exponent=0.3")
    ('mine', 'cost_power-cost_exponent-0.3')
    """
    name, *options = agent.split(":")
    return "-".join([Path(name).name, *(re.sub(r"[^\w.]+", "-", text) for text in options)])


def agent_options(config: RunConfig, agent: str) -> AgentOptions:
    """An agent with the options behind its name, ``NAME:key=value:key=value``.

    Options of the configuration go to the agent that they were written for.

    Raises:
        ConfigError: for an option without a value.
    """
    name, *texts = agent.split(":")
    options = dict(config.agent.options) if name == config.agent.name else {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--agents: {agent!r}: write options as NAME:key=value:key=value")
        options[key] = parse_yaml(value, f"--agents: {agent}: {key}")[0]
    return AgentOptions(name=name, options=options)


def entries(
    config: RunConfig,
    labels: Mapping[str, str],
    seeds: int,
    budget: str,
    tasks: TaskChoice | None,
) -> list[Entry]:
    """Every run, those that share rows side by side.

    Args:
        config: of each run; ``run.dir`` holds them all.
        labels: of :func:`labels_of`; a budget in supervised tokens is set from the steps under the
            first one if the configuration has none.
        seeds: how many, counted from ``config.seed``.
        budget: what is equal.
        tasks: real tasks to run on; None: the configuration's own sources.

    Raises:
        ConfigError: for a budget that contradicts the configuration, or unknown tasks.
        SourceError: for a pool that cannot be read.
    """
    first = next(iter(labels.values()))
    found = []
    for task, folder, own in _mixtures(config, tasks):
        equal = _budgeted(own, first, budget)
        for seed in range(config.seed, config.seed + seeds):
            for label, agent in labels.items():
                out = folder / label / f"seed-{seed}"
                found.append(Entry(task, label, seed, _seeded(equal, agent, seed, out)))
    return found


def _mixtures(
    config: RunConfig, tasks: TaskChoice | None
) -> Iterator[tuple[str | None, Path, RunConfig]]:
    """Name, folder of its runs and configuration of every task, or of the one mixture."""
    folder = Path(config.run.dir)
    if tasks is None:
        yield None, folder, config
        return
    pool = find_pool(tasks.pool)
    given = {name: getattr(config.run, name) for name in config.run.model_fields_set}
    run = config.run.model_copy(update={**RECORDS_ONLY, **given})
    for task in real_tasks(tasks.name, pool, tasks.limit):
        home = materialise(task, pool, folder / "tasks")
        own = on_task(config.model_copy(update={"run": run}), task, home)
        yield task.name, folder / task.name, own


def _budgeted(config: RunConfig, agent: str, budget: str) -> RunConfig:
    """The configuration under a budget that is equal for all agents."""
    read, tokens = config.training.tokens, config.training.supervised_tokens
    if budget == TOKENS:
        if tokens is not None:
            raise ConfigError(
                f"training.supervised_tokens={tokens}: is no budget of equal compute: leave it "
                "out, or compare at --budget supervised_tokens"
            )
        return config
    if read is not None:
        raise ConfigError(
            f"training.tokens={read}: is a budget of equal compute: leave it out, or compare at "
            "--budget tokens"
        )
    if tokens is not None:
        return config
    own = config.model_copy(update={"agent": agent_options(config, agent)})
    tokens = int(make_plan(own)["run"]["supervised_tokens"])
    training = config.training.model_copy(update={"supervised_tokens": tokens})
    return config.model_copy(update={"training": training})


def _seeded(config: RunConfig, agent: str, seed: int, out: Path) -> RunConfig:
    run = config.run.model_copy(update={"dir": str(out)})
    model = config.model.model_copy(update={"init_seed": config.model.init_seed + seed})
    options = agent_options(config, agent)
    return config.model_copy(update={"seed": seed, "run": run, "model": model, "agent": options})
