"""The command ``list``: names that a configuration may use."""

import importlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from mixgym.envs.errors import ConfigError, did_you_mean
from mixgym.envs.plugins.registry import BUILT_IN, Registry
from mixgym.trainer.cli.common import Json, answer_with, app, failures_worded


class What(StrEnum):
    """What can be listed."""

    OPTIONS = "options"

    ALGORITHMS = "algorithms"
    REWARDS = "rewards"
    PROBES = "probes"
    ENVS = "envs"
    SCORERS = "scorers"
    ROW_FORMATS = "row-formats"
    PACKERS = "packers"
    MERGE_METHODS = "merge-methods"


REGISTRIES = {
    What.ALGORITHMS: ("mixgym.agents.registry", "ALGORITHMS"),
    What.REWARDS: ("mixgym.envs.rewards", "REWARDS"),
    What.PROBES: ("mixgym.envs.probes", "PROBES"),
    What.ENVS: ("mixgym.envs.registration", "ENVIRONMENTS"),
    What.SCORERS: ("mixgym.envs.sources.scorers", "SCORERS"),
    What.ROW_FORMATS: ("mixgym.envs.sources.rows.formats", "FORMATS"),
    What.PACKERS: ("mixgym.envs.packing.packers", "PACKERS"),
    What.MERGE_METHODS: ("mixgym.trainer.merging.methods.catalogue", "METHODS"),
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
    """Names that a configuration may use, where they come from and what they stand for.

    `list options NAME` shows what an algorithm or a merge method takes.
    """
    with failures_worded("nothing was written"):
        rows = _options(name) if what is What.OPTIONS else _words(what, name)
    if json_output:
        answer_with({key: _plain(said) for key, *said in rows}, json_output)
        return
    if not rows:
        typer.echo(f"{name} takes no options")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]).rstrip())


def _plain(said: list[str]) -> Any:
    """What is said of a word, as JSON has it."""
    return said[0] if len(said) == 1 else dict(zip(("origin", "summary"), said, strict=True))


def shown(value: Any) -> str:
    """A default as it would be written in YAML, on one line."""
    if isinstance(value, str | int | float | bool | list | tuple | dict) or value is None:
        return json.dumps(value, default=str)
    return getattr(value, "__name__", str(value))


def _words(what: What, name: str | None) -> list[tuple[str, ...]]:
    """What is listed: words, where they come from, and what is said of them.

    Raises:
        ConfigError: for a name where none is looked for.
    """
    if name is not None:
        raise ConfigError(f"mixgym list {what} {name}: only `mixgym list options` takes a name")
    module, attribute = REGISTRIES[what]
    table: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
    if isinstance(table, Registry):
        return [(word, origin, summary) for word, summary, origin in table.listed()]
    return [(word, BUILT_IN, str(entry)) for word, entry in table.items()]


def _options(name: str | None) -> list[tuple[str, ...]]:
    """Option -> default and meaning.

    Raises:
        ConfigError: for a name that is neither an algorithm's nor a merge method's.
    """
    from mixgym.agents.registry import ALGORITHMS
    from mixgym.trainer.merging.methods.catalogue import METHODS, options_of_method

    if name is not None and METHODS.knows(name) and not ALGORITHMS.knows(name):
        return [
            (key, f"{shown(default)}  {about}") for key, default, about in options_of_method(name)
        ]
    if name is None or not ALGORITHMS.knows(name):
        known = [*ALGORITHMS.words(), *METHODS.words()]
        asked = "give a name" if name is None else f"{name} is unknown"
        raise ConfigError(f"mixgym list options: {asked}; {did_you_mean(name or '', known)}")
    from mixgym.agents.agent_options import options_of

    return [(one.name, f"{shown(one.default)}  {one.about}") for one in options_of(name)]
