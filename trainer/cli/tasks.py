"""The command about real tasks."""

from pathlib import Path
from typing import Annotated

import typer

from mixgym.trainer.cli.common import Json, answer_with, app, failures_worded, only_json

Pool = Annotated[
    Path | None,
    typer.Option(help="Folder of the sources that real tasks are drawn from ($MIXGYM_DATA)."),
]


@app.command()
def tasks(
    name: Annotated[
        str, typer.Argument(metavar="SET", help="real-train, real-validation or real-test.")
    ],
    out: Annotated[Path, typer.Option(help="Each task gets a folder in it.")],
    pool: Pool = None,
    limit: Annotated[int, typer.Option(help="How many tasks, from the first on.")] = 8,
    model: Annotated[str, typer.Option(help="The preset that is trained on them.")] = "0.1m",
    json_output: Json = False,
) -> None:
    """Draw real tasks from a pool of sources: rows and a configuration in a folder each."""
    with failures_worded("tasks that are complete are kept"):
        from mixgym.trainer.tasks.command import tasks_command

        with only_json(json_output):
            answer = tasks_command(
                name, pool=pool, limit=limit, model=model, out=out, json_output=json_output
            )
    answer_with(answer, json_output)
