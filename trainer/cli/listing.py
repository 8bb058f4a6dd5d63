"""The command ``list``: names that a configuration may use."""

import importlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from mixgym.trainer.cli.common import Json, answer_with, app


class What(StrEnum):
    """What can be listed."""

    ALGORITHMS = "algorithms"
    REWARDS = "rewards"
    PROBES = "probes"
    ENVS = "envs"
    MERGE_METHODS = "merge-methods"


REGISTRIES = {
    What.ALGORITHMS: ("mixgym.agents.registry", "ALGORITHMS"),
    What.REWARDS: ("mixgym.envs.rewards", "REWARDS"),
    What.PROBES: ("mixgym.envs.probes", "PROBES"),
    What.ENVS: ("mixgym.envs.registration", "ENVIRONMENTS"),
    What.MERGE_METHODS: ("mixgym.trainer.merging.methods.catalogue", "MERGE_METHODS"),
}
"""Module and name of each registry; these modules import nothing heavy."""


@app.command("list")
def list_names(
    what: Annotated[What, typer.Argument(help="Which names to list.", show_default=False)],
    json_output: Json = False,
) -> None:
    """Names that a configuration may use, with what each stands for."""
    module, name = REGISTRIES[what]
    registry: Mapping[str, Any] = getattr(importlib.import_module(module), name)
    summaries = {key: str(getattr(entry, "summary", entry)) for key, entry in registry.items()}
    if json_output:
        answer_with(summaries, json_output)
        return
    width = max((len(key) for key in summaries), default=0)
    for key, summary in summaries.items():
        typer.echo(f"{key:<{width}}  {summary}")
