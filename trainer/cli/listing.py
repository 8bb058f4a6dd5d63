"""The command ``list``: names that a configuration may use."""

import importlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.trainer.cli.common import Json, answer_with, app, failures_worded


class What(StrEnum):
    """What can be listed."""

    OPTIONS = "options"

    ALGORITHMS = "algorithms"
    REWARDS = "rewards"
    PROBES = "probes"
    ENVS = "envs"
    PACKERS = "packers"
    MERGE_METHODS = "merge-methods"


REGISTRIES = {
    What.ALGORITHMS: ("mixgym.agents.registry", "ALGORITHMS"),
    What.REWARDS: ("mixgym.envs.rewards", "REWARDS"),
    What.PROBES: ("mixgym.envs.probes", "PROBES"),
    What.ENVS: ("mixgym.envs.registration", "ENVIRONMENTS"),
    What.PACKERS: ("mixgym.envs.packing.packers", "PACKERS"),
    What.MERGE_METHODS: ("mixgym.trainer.merging.methods.catalogue", "MERGE_METHODS"),
}
"""Module and name of each registry; these modules import nothing heavy."""


@app.command("list")
def list_names(
    what: Annotated[What, typer.Argument(help="Which names to list.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Argument(help="With `options`: an algorithm or a merge method.", show_default=False),
    ] = None,
    json_output: Json = False,
) -> None:
    """Names that a configuration may use, with what each stands for; `list options NAME`."""
    with failures_worded("nothing was written"):
        rows = _rows(what, name)
    if json_output:
        answer_with(dict(rows), json_output)
        return
    if not rows:
        typer.echo(f"{name} takes no options")
    width = max((len(key) for key, _ in rows), default=0)
    for key, about in rows:
        typer.echo(f"{key:<{width}}  {about}".rstrip())


def shown(value: Any) -> str:
    """A default as it would be written in YAML, on one line."""
    if isinstance(value, str | int | float | bool | list | tuple | dict) or value is None:
        return json.dumps(value, default=str)
    return getattr(value, "__name__", str(value))


def _rows(what: What, name: str | None) -> list[tuple[str, str]]:
    """What is listed: names and what is said of them.

    Raises:
        ConfigError: for an unknown name, or one where none is looked for.
    """
    if what is What.OPTIONS:
        return _options(name)
    if name is not None:
        raise ConfigError(f"mixgym list {what} {name}: only `mixgym list options` takes a name")
    module, attribute = REGISTRIES[what]
    registry: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
    return [(key, str(getattr(entry, "summary", entry))) for key, entry in registry.items()]


def _options(name: str | None) -> list[tuple[str, str]]:
    """Option -> default and meaning.

    Raises:
        ConfigError: for a name that is neither an algorithm's nor a merge method's.
    """
    from mixgym.agents.registry import ALGORITHMS
    from mixgym.trainer.merging.methods.catalogue import METHODS, options_of_method

    if name in METHODS:
        return [
            (key, f"{shown(default)}  {about}") for key, default, about in options_of_method(name)
        ]
    if name not in ALGORITHMS:
        known = [*ALGORITHMS, *METHODS]
        asked = "give a name" if name is None else f"{name} is unknown"
        raise ConfigError(f"mixgym list options: {asked}; {did_you_mean(name or '', known)}")
    from mixgym.agents.agent_options import options_of

    return [(one.name, f"{shown(one.default)}  {one.about}") for one in options_of(name)]
