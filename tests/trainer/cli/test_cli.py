"""The command line is quick to help, strict about its input, and clear about its failures."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mixgym.envs.errors import DivergenceError, RunError, SourceError
from mixgym.trainer.cli.listing import REGISTRIES
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig

HEAVY = ("torch", "transformers", "stable_baselines3", "accelerate", "matplotlib")


class Commands:
    """Stands in for the modules of the commands and remembers their calls."""

    def __init__(self) -> None:
        self.config = RunConfig()
        self.resume = False
        self.error: BaseException | None = None

    def finetune_command(
        self, config: RunConfig, *, resume: bool, json_output: bool
    ) -> dict[str, Any]:
        self.config, self.resume = config, resume
        sys.stdout.write("progress\n")
        if self.error is not None:
            raise self.error
        return {"status": "finished", "loss": math.nan, "mixture": {"é": 0.1}}

    def plan_command(
        self, config: RunConfig, *, processes: int, details: bool, json_output: bool
    ) -> dict[str, Any]:
        return self.finetune_command(config, resume=False, json_output=json_output)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stand_in = Commands()
    for name, place in (("finetune", "finetuning.finetune"), ("plan", "reports.dry_run")):
        module = ModuleType(f"mixgym.trainer.{place}")
        setattr(module, f"{name}_command", getattr(stand_in, f"{name}_command"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="mixgym")


def test_defaults_need_no_configuration(commands: Commands) -> None:
    result = run("finetune")
    assert (result.exit_code, result.stdout) == (0, "progress\n")
    assert commands.config == RunConfig()
    assert not commands.resume


def test_options_reach_the_command(commands: Commands, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nagent: {name: fixed, options: {weights: [1]}}\n")
    out = str(tmp_path / "out")
    result = run("finetune", str(path), "training.steps=5", "--out", out, "--resume")
    assert result.exit_code == 0
    config = commands.config
    assert (config.seed, config.training.steps, config.run.dir) == (3, 5, out)
    assert config.agent.options == {"weights": [1]}
    assert commands.resume


def test_another_agent_does_not_inherit_options(commands: Commands, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("agent: {name: fixed, options: {weights: [1]}}\n")
    run("finetune", str(path), "--agent", "temperature", "agent.options.tau=2", "agent.name=ucb")
    assert (commands.config.agent.name, commands.config.agent.options) == (
        "temperature",
        {"tau": 2},
    )
    run("finetune", str(path), "--agent", "fixed")
    assert commands.config.agent.options == {"weights": [1]}


def test_a_run_folder_is_resumed_by_its_name(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 5\nrun: {dir: moved/since}\n")
    assert run("finetune", str(tmp_path), "--resume").exit_code == 0
    assert (commands.config.seed, commands.config.run.dir) == (5, str(tmp_path))
    result = run("finetune", str(tmp_path))
    assert result.exit_code == 2
    assert "is a folder; give a YAML file, or --resume" in result.stderr


@pytest.mark.parametrize("command", ["finetune", "plan"])
def test_json_is_all_that_stands_on_stdout(commands: Commands, command: str) -> None:
    result = run(command, "--json")
    assert json.loads(result.stdout) == {
        "status": "finished",
        "loss": None,
        "mixture": {"é": 0.1},
    }
    assert "progress" in result.stderr


def test_mistakes_are_lines_without_traceback(commands: Commands) -> None:
    result = run("plan", "training.stpes=3", "sedd=4")
    assert result.exit_code == 2
    assert sorted(result.stderr.splitlines()) == [
        "mixgym: error: command line: sedd: unknown key (value 4); did you mean 'seed'?",
        "mixgym: error: command line: training.stpes: unknown key (value 3); did you mean 'steps'?",
    ]
    result = run("plan", "a.yaml", "b.yaml")
    assert result.exit_code == 2
    assert "a.yaml, b.yaml: one configuration file is read" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(SourceError("a.jsonl:3: x"), 2), (RunError("r: x"), 1), (DivergenceError("step 3: x"), 1)],
)
def test_failures_have_their_exit_code(commands: Commands, error: Exception, code: int) -> None:
    commands.error = error
    result = run("finetune")
    assert (result.exit_code, result.stderr) == (code, f"mixgym: error: {error}\n")


def test_our_own_defects_keep_their_traceback(commands: Commands) -> None:
    commands.error = ZeroDivisionError("ours")
    result = run("finetune")
    assert result.exit_code == 1
    assert result.exception is commands.error


def test_an_interrupt_says_how_to_go_on(commands: Commands) -> None:
    commands.error = KeyboardInterrupt()
    result = run("finetune", "run.dir=my runs/a")
    assert result.exit_code == 130
    assert result.stderr == (
        "mixgym: interrupted; continue with: mixgym finetune 'my runs/a' --resume\n"
    )


def test_misuse() -> None:
    assert run("list", "nonsense").exit_code == 2
    assert run("finetune", "--nonsense").exit_code == 2
    assert run("nonsense").exit_code == 2


@pytest.mark.parametrize("what", list(REGISTRIES))
def test_lists_show_names_and_meanings(what: str) -> None:
    pytest.importorskip(REGISTRIES[what][0])
    result = run("list", what)
    assert result.exit_code == 0
    names = json.loads(run("list", what, "--json").stdout)
    assert names
    for line, (name, said) in zip(result.stdout.splitlines(), names.items(), strict=True):
        assert said["origin"] == "built in"
        assert line.split() == [name, "built", "in", *said["summary"].split()]


def loaded_after(*arguments: str) -> tuple[set[str], str]:
    """Heavy modules that a command loads, and its output."""
    code = (
        "import sys\nfrom mixgym.trainer.cli.main import main\n"
        f"sys.argv = ['mixgym', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return set(output.split("LOADED")[1].split()), output


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *(("list", w) for w in REGISTRIES)]
)
def test_help_and_lists_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    arguments = tuple(map(str, arguments))
    if arguments[0] == "list":
        pytest.importorskip(REGISTRIES[arguments[1]][0])
    heavy, output = loaded_after(*arguments)
    assert heavy == set()
    assert "finetune" in output or arguments != ("--help",)


@pytest.mark.parametrize("name", ["temperature", "hbo", "ppo", "ties"])
def test_options_of_a_name_are_listed_with_their_defaults(name: str) -> None:
    found = json.loads(run("list", "options", name, "--json").stdout)
    assert found
    lines = run("list", "options", name).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(found)


def test_options_are_asked_for_by_a_known_name() -> None:
    assert "takes no options" in run("list", "options", "uniform").stdout
    assert "did you mean ties?" in run("list", "options", "tise").output
    assert run("list", "options").exit_code == 2
    assert run("list", "rewards", "progress").exit_code == 2
