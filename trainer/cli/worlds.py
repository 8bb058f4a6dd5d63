"""The commands about fast worlds: record runs, fit a world to them."""

from pathlib import Path
from typing import Annotated

import typer

from mixgym.trainer.cli.common import (
    Arguments,
    Jobs,
    Json,
    answer_with,
    app,
    failures_worded,
    only_json,
    read_config,
    words,
)


@app.command()
def record(
    arguments: Arguments = None,
    runs: Annotated[int, typer.Option(help="Runs in all, earlier ones counted.")] = 20,
    jobs: Jobs = 1,
    vary: Annotated[
        str, typer.Option(help="What varies beside the mixture: rate, steps, or rate,steps.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="The folder of all runs (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Record short real runs under random mixtures, for a fast world to be fitted to."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [], out=out)
    with failures_worded("run the same command again: finished runs are kept"):
        from mixgym.trainer.recording.record import record_command

        with only_json(json_output):
            answer = record_command(
                config, runs=runs, processes=jobs, vary=words(vary), json_output=json_output
            )
    answer_with(answer, json_output)


@app.command()
def fit(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of recorded runs, or folders of such folders.")
    ],
    out: Annotated[Path, typer.Option(help="The world: a JSON file to write.")],
    origin: Annotated[str, typer.Option(help="Where the data come from, for the record.")] = "",
    folds: Annotated[int, typer.Option(min=2, help="That unseen runs are predicted in.")] = 4,
    picture: Annotated[
        Path | None, typer.Option(help="A PNG of predicted and recorded curves.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Fit a fast world to recorded runs; refused where it predicts no better than the nulls."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.worlds.fit import fit_command

        with only_json(json_output):
            answer = fit_command(
                runs, out=out, origin=origin, folds=folds, picture=picture, json_output=json_output
            )
    answer_with(answer, json_output)
