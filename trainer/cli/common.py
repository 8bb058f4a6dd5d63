"""What all commands share: the application, how arguments are read, and how failures are worded.

Exit codes: 0 done, 1 failed, 2 misuse, 130 interrupted. With ``--json`` the answer is one JSON
document on the standard output, and everything else goes to standard error.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY.SUB=VALUE]...",
        help="A YAML file (without one: all defaults, embedded sources), and keys to override.",
        show_default=False,
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")]


def read_config(
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


def words(text: str) -> list[str]:
    """The parts of a list that is written with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


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
def failures_worded(when_interrupted: str) -> Iterator[None]:
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
def only_json(json_output: bool) -> Iterator[None]:
    """Keep the standard output free for the answer."""
    if not json_output:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def answer_with(answer: Mapping[str, Any], json_output: bool) -> None:
    """Print the answer as JSON where that is wanted; otherwise the command has spoken."""
    if json_output:
        from mixgym.envs.storage import json_text

        typer.echo(json_text(answer, indent=2))
