"""The command line ``mixgym``: parses, calls one function per command, and words its failures.

Commands live in modules of their own, imported when they run, so that help and lists cost a
fraction of a second. Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted. With ``--json`` the
answer is one JSON document on the standard output, and everything else goes to standard error.
"""

import contextlib
import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixgym.envs.errors import ConfigError, MixgymError, SourceError

if TYPE_CHECKING:
    from mixgym.trainer.config import RunConfig

FAILED, MISUSE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="mixgym",
    help="Data scheduling for LLM fine-tuning, framed as reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class What(StrEnum):
    """What can be listed."""

    ALGORITHMS = "algorithms"
    REWARDS = "rewards"
    PROBES = "probes"
    ENVS = "envs"
    MERGE_METHODS = "merge-methods"


REGISTRIES = {
    What.ALGORITHMS: ("mixgym.agents.registry", "ALGORITHMS"),
    What.REWARDS: ("mixgym.envs.rewards", "REWARDS"),
    What.PROBES: ("mixgym.envs.probes", "PROBES"),
    What.ENVS: ("mixgym.envs.registration", "ENVIRONMENTS"),
    What.MERGE_METHODS: ("mixgym.trainer.merging.catalogue", "MERGE_METHODS"),
}
"""Module and name of each registry; these modules import nothing heavy."""

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY.SUB=VALUE]...",
        help="A YAML file (without one: all defaults, embedded sources), and keys to override.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")]


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


@app.command()
def plan(
    arguments: Arguments = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many will train (torchrun --nproc_per_node).")
    ] = 1,
    json_output: Json = False,
) -> None:
    """Dry run: tokens, epochs and strata per source, packing, costs. Trains nothing."""
    with _failures_worded("nothing was written"):
        config = _config(arguments or [])
        from mixgym.trainer.plan import plan_command

        with _only_json(json_output):
            answer = plan_command(config, processes=processes, json_output=json_output)
    _answer(answer, json_output)


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
    with _failures_worded("nothing was written"):
        config = _config(arguments or [], agent=agent, out=out, resume=resume, several=True)
    continuation = f"continue with: mixgym finetune {shlex.quote(config.run.dir)} --resume"
    with _failures_worded(continuation):
        from mixgym.trainer.finetune import finetune_command

        with _only_json(json_output):
            answer = finetune_command(config, resume=resume, json_output=json_output)
    if answer:  # of several ranks, one answers
        _answer(answer, json_output)


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
    with _failures_worded("nothing was written"):
        config = _config([*(arguments or []), *overrides], out=out, resume=resume)
    continuation = f"continue with: mixgym train {shlex.quote(config.run.dir)} --resume"
    with _failures_worded(continuation):
        from mixgym.trainer.train import train_command

        with _only_json(json_output):
            answer = train_command(config, resume=resume, json_output=json_output)
    _answer(answer, json_output)


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
    with _failures_worded("nothing was written"):
        config = _config([*(arguments or []), *overrides], out=out)
    with _failures_worded("run the same command again: finished trials are kept"):
        from mixgym.trainer.tuning import tune_command

        with _only_json(json_output):
            answer = tune_command(config, trials=trials, seeds=seeds, json_output=json_output)
    _answer(answer, json_output)


@app.command()
def compare(
    agents: Annotated[
        str, typer.Option(help="Names of algorithms or run folders, A,B,...; A is the reference.")
    ],
    arguments: Arguments = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted from the seed given.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="The folder of all runs (run.dir of the configuration).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Compare schedulers on equal terms: paired seeds, equal supervised tokens."""
    with _failures_worded("nothing was written"):
        config = _config(arguments or [], out=out)
    with _failures_worded("run the same command again: finished runs are kept"):
        from mixgym.trainer.compare import compare_command

        names = [name.strip() for name in agents.split(",") if name.strip()]
        with _only_json(json_output):
            answer = compare_command(config, agents=names, seeds=seeds, json_output=json_output)
    _answer(answer, json_output)


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="The folder of a training or a fine-tuning run.")],
    json_output: Json = False,
) -> None:
    """Is an agent what it seems: does it move, observe, gain? Exit code 1 where it does not."""
    with _failures_worded("nothing was written"):
        from mixgym.trainer.doctor import doctor_command

        with _only_json(json_output):
            answer = doctor_command(run, json_output=json_output)
    _answer(answer, json_output)
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
    with _failures_worded("nothing was written"):
        config = _config(arguments or [], out=out)
    with _failures_worded("run the same command again: what is finished is kept"):
        from mixgym.trainer.weights import weights_command

        with _only_json(json_output):
            answer = weights_command(config, json_output=json_output)
    _answer(answer, json_output)


@app.command("list")
def list_names(
    what: Annotated[What, typer.Argument(help="Which names to list.", show_default=False)],
    json_output: Json = False,
) -> None:
    """Names that a configuration may use, with what each stands for."""
    module, name = REGISTRIES[what]
    registry: Mapping[str, Any] = getattr(importlib.import_module(module), name)
    summaries = {key: str(getattr(entry, "summary", entry)) for key, entry in registry.items()}
    if json_output:
        _answer(summaries, json_output)
        return
    width = max((len(key) for key in summaries), default=0)
    for key, summary in summaries.items():
        typer.echo(f"{key:<{width}}  {summary}")


def _config(
    arguments: Sequence[str],
    *,
    agent: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    several: bool = False,
) -> "RunConfig":
    """The configuration that the arguments of a command describe.

    Another agent than the file's starts from its own defaults: the options in the file were meant
    for somebody else.

    Raises:
        ConfigError: if two files are given, the configuration is not valid, or several processes
            were started for a command of one.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not several:
        raise ConfigError(
            f"torchrun started {started} processes, and only mixgym finetune runs in several: "
            "start this command without torchrun"
        )
    from mixgym.trainer.config import load_config

    path, overrides = _split(arguments)
    if path is not None and path.is_dir():
        if not resume:
            raise ConfigError(f"{path}: is a folder; give a YAML file, or --resume to continue it")
        overrides = [f"run.dir={json.dumps(str(path))}", *overrides]
        path = path / "config.yaml"
    if out is not None:
        overrides = [*overrides, f"run.dir={json.dumps(str(out))}"]
    config = load_config(path, overrides)
    if agent is not None and agent != config.agent.name:
        chosen = f"agent={json.dumps({'name': agent})}"
        others = [override for override in overrides if not override.startswith("agent.name=")]
        config = load_config(path, [chosen, *others])
    return config


def _split(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Tell the configuration file from the overrides, which hold an equals sign."""
    overrides = [argument for argument in arguments if "=" in argument]
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(
            f"command line: {', '.join(files)}: one configuration file is read; "
            "overrides are written key.sub=value"
        )
    return (Path(files[0]) if files else None), overrides


@contextlib.contextmanager
def _failures_worded(when_interrupted: str) -> Iterator[None]:
    """Turn bad input and Ctrl-C into lines on standard error and an exit code.

    Anything else is a defect of ours and keeps its traceback (exit code 1).
    """
    try:
        yield
    except MixgymError as error:
        for line in str(error).splitlines():
            typer.echo(f"mixgym: error: {line}", err=True)
        is_misuse = isinstance(error, ConfigError | SourceError)
        raise typer.Exit(MISUSE if is_misuse else FAILED) from None
    except KeyboardInterrupt:
        typer.echo(f"mixgym: interrupted; {when_interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def _only_json(json_output: bool) -> Iterator[None]:
    """Keep the standard output free for the answer."""
    if not json_output:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _answer(answer: Mapping[str, Any], json_output: bool) -> None:
    if json_output:
        from mixgym.trainer.storage import json_text

        typer.echo(json_text(answer, indent=2))


for _more in ("merging", "packing"):  # they register their commands
    importlib.import_module(f"mixgym.trainer.cli_{_more}")
