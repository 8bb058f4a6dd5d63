"""The commands about runs and agents: plan, fine-tune, train, tune, compare, doctor, weights."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mixgym.trainer.cli.common import (
    FAILED,
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
from mixgym.trainer.cli.tasks import Pool


@app.command()
def plan(
    arguments: Arguments = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many will train (torchrun --nproc_per_node).")
    ] = 1,
    details: Annotated[
        bool, typer.Option("--details", help="Also strata, counts of rows, figures of packing.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Dry run: tokens, epochs and strata per source, packing, costs. Trains nothing."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [])
        from mixgym.trainer.reports.dry_run import plan_command

        with only_json(json_output):
            answer = plan_command(
                config, processes=processes, details=details, json_output=json_output
            )
    answer_with(answer, json_output)


@app.command()
def finetune(
    arguments: Arguments = None,
    agent: Annotated[
        str | None,
        typer.Option(help="Who decides: an algorithm's name (see: mixgym list algorithms)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed run; CONFIG may be its folder.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """One fine-tuning run under a schedule; leaves a Hugging Face model and its records."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [], agent=agent, out=out, resume=resume, several=True)
    continuation = f"continue with: mixgym finetune {shlex.quote(config.run.dir)} --resume"
    with failures_worded(continuation):
        from mixgym.trainer.finetuning.finetune import finetune_command

        with only_json(json_output):
            answer = finetune_command(config, resume=resume, json_output=json_output)
    if answer:  # of several ranks, one answers
        answer_with(answer, json_output)


@app.command()
def train(
    arguments: Arguments = None,
    algo: Annotated[
        str | None, typer.Option(help="The algorithm (train.algo of the configuration).")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(help="joint, global, local, alternate or together (train.level)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a killed training; CONFIG may be its folder.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Train a scheduling agent over many episodes; leaves the best one in RUN/agent."""
    words = {"algo": algo, "level": level}
    overrides = [f"train.{name}={json.dumps(word)}" for name, word in words.items() if word]
    with failures_worded("nothing was written"):
        config = read_config([*(arguments or []), *overrides], out=out, resume=resume)
    continuation = f"continue with: mixgym train {shlex.quote(config.run.dir)} --resume"
    with failures_worded(continuation):
        from mixgym.trainer.training.train import train_command

        with only_json(json_output):
            answer = train_command(config, resume=resume, json_output=json_output)
    answer_with(answer, json_output)


@app.command()
def tune(
    arguments: Arguments = None,
    algo: Annotated[
        str | None, typer.Option(help="The algorithm (train.algo of the configuration).")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier ones counted.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per trial.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the study (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Search an algorithm's options on the validation tasks; needs the extra `tune`."""
    overrides = [] if algo is None else [f"train.algo={json.dumps(algo)}"]
    with failures_worded("nothing was written"):
        config = read_config([*(arguments or []), *overrides], out=out)
    with failures_worded("run the same command again: finished trials are kept"):
        from mixgym.trainer.training.tuning import tune_command

        with only_json(json_output):
            answer = tune_command(config, trials=trials, seeds=seeds, json_output=json_output)
    answer_with(answer, json_output)


@app.command()
def compare(
    agents: Annotated[
        str,
        typer.Option(
            help="Run folders, or names of algorithms (with options: NAME:key=value), A,B,...; A "
            "is the reference."
        ),
    ],
    arguments: Arguments = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="How many, counted from the seed given (3; with --tasks 1).", min=1),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="What is equal: tokens (read: equal compute), or supervised_tokens."),
    ] = "tokens",
    tasks: Annotated[
        str | None,
        typer.Option(help="real-test, real-validation or real-train, instead of CONFIG's sources."),
    ] = None,
    pool: Pool = None,
    limit: Annotated[int, typer.Option(help="Real tasks, from the first on.")] = 20,
    split: Annotated[
        str, typer.Option(help="What judges: test, or select while agents are being chosen.")
    ] = "test",
    jobs: Jobs = 1,
    out: Annotated[
        Path | None, typer.Option(help="The folder of all runs (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Compare schedulers on equal terms: paired by seed or real task, at equal compute."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [], out=out)
    with failures_worded("run the same command again: finished runs are kept"):
        from mixgym.trainer.comparing.entries import TaskChoice
        from mixgym.trainer.reports.compare import compare_command

        chosen = None if tasks is None else TaskChoice(tasks, pool, limit)
        with only_json(json_output):
            answer = compare_command(
                config,
                agents=words(agents),
                seeds=seeds or (3 if tasks is None else 1),
                budget=budget,
                tasks=chosen,
                split=split,
                processes=jobs,
                json_output=json_output,
            )
    answer_with(answer, json_output)


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="The folder of a training or a fine-tuning run.")],
    json_output: Json = False,
) -> None:
    """Is an agent what it seems: does it move, observe, gain? Exit code 1 where it does not."""
    with failures_worded("nothing was written"):
        from mixgym.trainer.reports.doctor import doctor_command

        with only_json(json_output):
            answer = doctor_command(run, json_output=json_output)
    answer_with(answer, json_output)
    if not answer["healthy"]:
        raise typer.Exit(FAILED)


@app.command()
def weights(
    arguments: Arguments = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of both runs (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Learn source weights on a subset (ScaleBiO), then fine-tune the base model by them."""
    with failures_worded("nothing was written"):
        config = read_config(arguments or [], out=out)
    with failures_worded("run the same command again: what is finished is kept"):
        from mixgym.trainer.finetuning.weights import weights_command

        with only_json(json_output):
            answer = weights_command(config, json_output=json_output)
    answer_with(answer, json_output)
