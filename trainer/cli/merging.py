"""The commands about merging."""

from pathlib import Path
from typing import Annotated

import typer

from mixgym.trainer.cli.common import (
    Arguments,
    Json,
    answer_with,
    app,
    failures_worded,
    only_json,
    read_config,
)


@app.command()
def merge(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]... [KEY=VALUE]...",
            help="Model or run folders, and keys of a recipe or parameters of the method.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model that the others come from; start: what the runs began with."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="See: mixgym list merge-methods (default: select).")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder to write.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A YAML recipe; mergekit's are read as well.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, write nothing.")] = False,
    json_output: Json = False,
) -> None:
    """Merge fine-tuned models, streaming, with bounded memory."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.merging import merge_command

        words = arguments or []
        options = dict(word.split("=", 1) for word in words if "=" in word)
        models = [word for word in words if "=" not in word]
        with only_json(json_output):
            report = merge_command(
                models,
                base=base,
                method=method,
                out=out,
                recipe=recipe,
                dry_run=dry_run,
                options=options,
            )
    if json_output:
        answer_with(report.to_dict(), json_output)
    else:
        typer.echo(report.text())


@app.command()
def soup(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] MODEL... [KEY.SUB=VALUE]...",
            help="Model or run folders; CONFIG gives the held-out rows (default: the first run's).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder to write.")] = None,
    kind: Annotated[
        str, typer.Option(help="greedy: keep what lowers the held-out loss; uniform: all.")
    ] = "greedy",
    split: Annotated[str, typer.Option(help="Held-out rows: select or reward.")] = "select",
    method: Annotated[str, typer.Option(help="How the chosen models are merged.")] = "linear",
    base: Annotated[str | None, typer.Option(help="A folder, or start; see merge.")] = None,
    json_output: Json = False,
) -> None:
    """Average those models that lower mixgym's own held-out loss."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.merging.soup_command import soup_command

        with only_json(json_output):
            answer = soup_command(
                arguments or [],
                out=out,
                kind=kind,
                split=split,
                method=method,
                base=base,
                json_output=json_output,
            )
    answer_with(answer, json_output)


@app.command()
def orders(
    arguments: Arguments = None,
    runs: Annotated[int | None, typer.Option(help="Models to train (orders.runs).")] = None,
    kind: Annotated[
        str | None, typer.Option(help="What is shuffled: samples or positions (orders.kind).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the study (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Train models that differ in data order only, measure what the order did, merge them."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [], out=out)
    with failures_worded("run the same command again: finished runs are kept"):
        from mixgym.trainer.orders.command import orders_command

        with only_json(json_output):
            answer = orders_command(config, runs=runs, kind=kind, json_output=json_output)
    answer_with(answer, json_output)
