"""The commands about packing."""

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
def profile(
    arguments: Arguments = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("machine.json"),
    repeats: Annotated[int, typer.Option(min=1, help="Passes of each kind of pack.")] = 3,
    json_output: Json = False,
) -> None:
    """Time the model's packs on this machine, for the cost model of packing. Trains nothing."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [])
        from mixgym.trainer.reports.profile import profile_command

        with only_json(json_output):
            answer = profile_command(config, out=out, repeats=repeats, json_output=json_output)
    answer_with(answer, json_output)


@app.command()
def simulate(
    arguments: Arguments = None,
    mix: Annotated[str, typer.Option(help="Lengths to draw where no CONFIG is given.")] = (
        "paper_like"
    ),
    documents: Annotated[int | None, typer.Option(min=1, help="Documents to draw.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="Tokens in the longest pack.")] = None,
    model: Annotated[str, typer.Option(help="A stated model.")] = "llama-3.1-8b",
    hardware: Annotated[str, typer.Option(help="A stated machine.")] = "32xh100",
    link: Annotated[float | None, typer.Option(help="GB/s of all-to-all inside a node.")] = None,
    step_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a step.")] = None,
    groups: Annotated[str, typer.Option(help="auto, or LENGTHxDEGREE,...")] = "auto",
    methods: Annotated[str, typer.Option(help="Methods, A,B,... (default: all).")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of lengths and orders.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for a picture of the load.")] = None,
    json_output: Json = False,
) -> None:
    """Replay packers on a stated cluster: time, waiting, balance. Trains nothing."""
    with failures_worded("nothing was written"):
        config = read_config(arguments) if arguments else None
        from mixgym.trainer.simulate.command import SimulationOptions, simulate_command

        options = SimulationOptions(
            mix=mix,
            documents=documents,
            longest=longest,
            model=model,
            hardware=hardware,
            link=link,
            step_tokens=step_tokens,
            groups=groups,
            methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
            seeds=seeds,
            out=out,
        )
        with only_json(json_output):
            answer = simulate_command(options, config, json_output=json_output)
    answer_with(answer, json_output)
