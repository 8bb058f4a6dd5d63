"""The command ``check-plugin``."""

from typing import Annotated

import typer

from mixgym.trainer.cli.common import FAILED, Json, answer_with, app, failures_worded, only_json


@app.command("check-plugin")
def check_plugin(
    word: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:ATTRIBUTE", help="Or a word that an installed distribution declares."
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="What it is, where a bare function does not tell: reward, probe, algorithm, "
            "scorer, row-format, packer, merge-method.",
            show_default=False,
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Check a plug-in of your own: finite, deterministic, batched equals single, cost declared."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.plugins.command import check_plugin as check

        with only_json(json_output):
            report = check(word, kind)
    if json_output:
        answer_with(report.to_dict(), json_output)
    else:
        typer.echo(report.text())
    if not report.passed:
        raise typer.Exit(FAILED)
