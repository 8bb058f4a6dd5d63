"""The command line ``mixgym``: every module of commands registers its own with the application.

Commands import what they run when they run, so that help and lists cost a fraction of a second.
"""

from typing import Annotated

import typer

from mixgym.trainer.cli import listing, merging, packing, plugins, runs, starting, tasks, worlds
from mixgym.trainer.cli.common import app

COMMANDS = (runs, tasks, worlds, listing, plugins, starting, merging, packing)
"""Modules of commands, imported because that registers them."""


def main() -> None:
    """Run the command line and exit."""
    app(prog_name="mixgym")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mixgym {version('mixgym')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Data scheduling for LLM fine-tuning, framed as reinforcement learning."""
