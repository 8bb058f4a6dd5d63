"""The commands that help with a configuration: its schema, and a first one for a folder of data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mixgym.trainer.cli.common import app, failures_worded


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration, by which editors complete its YAML."""
    from mixgym.trainer.config_schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with data files.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write (default: mixgym.yaml in the folder)."),
    ] = None,
) -> None:
    """Write a commented configuration for the data files in a folder; nothing is overwritten."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.first_config import write_first_config

        written = write_first_config(folder, out)
    typer.echo(f"wrote {written}; next: mixgym plan {written}")
