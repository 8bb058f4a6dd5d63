"""A run can die at any instant and goes on to the same bits; what fails says so in one line."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from mixgym.envs import storage
from mixgym.envs.errors import ConfigError, DivergenceError, RunError
from mixgym.envs.learners import causal_lm
from mixgym.envs.learners.steps import OptimiserSteps
from mixgym.trainer.cli.main import app
from mixgym.trainer.config import RunConfig, dump_config
from mixgym.trainer.finetuning import finetune as finetune_module
from mixgym.trainer.finetuning.finetune import finetune
from mixgym.trainer.runs.folder import CONFIG, RunFolder

KILLS = 20

Make = Callable[..., RunConfig]
Remains = Callable[[Path], dict[str, Any]]
Tick = Callable[[], None]


class _CrashError(BaseException):
    """Not an Exception: nobody may catch it, as nobody catches a kill."""


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Calling it moves the wall clock on: a new event file need not wait for its own second."""
    real, ahead = time.time, itertools.count()
    shift = [0]

    def move() -> None:
        shift[0] = 2 * next(ahead)

    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    return move


def carry_on(config: RunConfig, tick: Tick) -> dict[str, Any]:
    """What a user does after a crash: resume, or start again if there is nothing to resume."""
    tick()
    return finetune(config, resume=(Path(config.run.dir) / CONFIG).is_file())


def count_failpoints(config: RunConfig) -> list[str]:
    reached: list[str] = []
    storage.on_failpoint = reached.append
    finetune(config)
    storage.on_failpoint = None
    return reached


def crash_at(number: int) -> Callable[[str], None]:
    left = itertools.count(1)

    def hook(name: str) -> None:
        if next(left) == number:
            raise _CrashError(name)

    return hook


def check_every_crash(make: Callable[[str], RunConfig], remains: Remains, tick: Tick) -> list[str]:
    """Crash once at each failpoint of a run, carry on, compare with the unbroken run."""
    whole = make("whole")
    reached = count_failpoints(whole)
    wanted = remains(Path(whole.run.dir))
    for number, name in enumerate(reached, 1):
        config = make(f"crash-{number}")
        tick()
        storage.on_failpoint = crash_at(number)
        with pytest.raises(_CrashError):
            finetune(config)
        storage.on_failpoint = None
        carry_on(config, tick)
        found = remains(Path(config.run.dir))
        for part, value in wanted.items():
            assert found[part] == value, f"{part} after a crash at {number}, {name}"
        shutil.rmtree(config.run.dir)
    return reached


def check_every_kill(make: Callable[[str], RunConfig], remains: Remains, tick: Tick) -> list[str]:
    """The same with the folder as it stands on disk at that instant: a kill tidies nothing."""
    whole = make("whole")
    folder = Path(whole.run.dir)
    reached: list[str] = []

    def keep(name: str) -> None:
        reached.append(name)
        shutil.copytree(folder, folder.parent / f"at-{len(reached)}" / "run")

    storage.on_failpoint = keep
    finetune(whole)
    storage.on_failpoint = None
    wanted = remains(folder)
    for number, name in enumerate(reached, 1):
        config = make(f"at-{number}/run")
        carry_on(config, tick)
        found = remains(Path(config.run.dir))
        for part, value in wanted.items():
            assert found[part] == value, f"{part} after a kill at {number}, {name}"
        shutil.rmtree(config.run.dir)
    return reached


@pytest.fixture
def _plain_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing would be most of a short run's time."""
    monkeypatch.setattr(finetune_module, "render_rgb", lambda *_: np.zeros((2, 2, 3), np.uint8))


WRITES = {
    "write:before", "write:middle", "write:after", "rename:before", "rename:after",
    "append:before", "append:after",
    "folder:before", "folder:filled", "folder:synced", "folder-rename:before",
    "folder-rename:after",
    "remove:before", "remove:renamed", "remove:after",
}  # fmt: skip


@pytest.mark.usefixtures("_plain_picture")
def test_a_language_model_goes_on_bit_equal_from_a_crash_at_every_write(
    make_config: Make, remains: Remains, tick: Tick
) -> None:
    reached = check_every_crash(make_config, remains, tick)
    assert set(reached) == WRITES


@pytest.mark.usefixtures("_plain_picture")
def test_curves_go_on_bit_equal_from_a_kill_at_every_write(
    make_config: Make, remains: Remains, tick: Tick
) -> None:
    def make(folder: str) -> RunConfig:
        return make_config(folder, sources="embedded", environment={"learner": "curves"})

    check_every_kill(make, remains, tick)


@pytest.fixture
def model_with_dropout(tmp_path: Path, make_config: Make) -> str:
    """A GPT-2 of one layer that drops a third of its activations."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from mixgym.envs.build import load_corpus

    folder = tmp_path / "gpt2"
    corpus = load_corpus(make_config("unused"))
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.3)
    size = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(corpus.tokenizer), bos_token_id=0, eos_token_id=0, **size, **rates
        )
    )
    model.save_pretrained(folder)
    corpus.tokenizer.save_pretrained(folder)
    return str(folder)


def test_dropout_goes_on_with_its_own_stream(
    make_config: Make, remains: Remains, model_with_dropout: str, tick: Tick
) -> None:
    def make(folder: str) -> RunConfig:
        return make_config(
            folder, model={"name": model_with_dropout}, agent={"name": "temperature"}
        )

    whole = make("whole")
    reached = count_failpoints(whole)
    for number in (len(reached) // 2, len(reached)):
        config = make(f"crash-{number}")
        storage.on_failpoint = crash_at(number)
        with pytest.raises(_CrashError):
            finetune(config)
        storage.on_failpoint = None
        carry_on(config, tick)
        assert remains(Path(config.run.dir)) == remains(Path(whole.run.dir))


def test_a_budget_of_tokens_and_a_script_resume_too(
    make_config: Make, remains: Remains, tick: Tick
) -> None:
    # numbers as keys: the folder's YAML must read back
    script = {"points": {0.0: {"addition": 1}, 1.0: {"noise": 1}}, "strata": {0.0: [1, 0]}}

    def make(folder: str) -> RunConfig:
        return make_config(
            folder,
            agent={"name": "scripted", "options": script},
            training={"tokens": 1200, "interval": 2, "schedule": "linear"},
        )

    whole = make("whole")
    reached = count_failpoints(whole)
    config = make("crash")
    storage.on_failpoint = crash_at(len(reached) - 20)
    with pytest.raises(_CrashError):
        finetune(config)
    storage.on_failpoint = None
    summary = carry_on(config, tick)
    assert summary["cost"]["train_tokens"] <= 1200
    assert remains(Path(config.run.dir)) == remains(Path(whole.run.dir))


@pytest.mark.slow
def test_twenty_kills_at_random_moments(
    tmp_path: Path, make_config: Make, remains: Remains
) -> None:
    # four sources of lasting work, so that kills fall into training, measuring and saving
    settings: dict[str, Any] = {
        "sources": "embedded",
        "data": {"max_length": 128},
        "training": {"steps": 120, "interval": 2, "packs": 8},
        "run": {"save_every": 2, "keep_last": 2},
    }
    whole, broken = make_config("whole", **settings), make_config("broken", **settings)
    finetune(whole)
    for config, name in ((whole, "whole.yaml"), (broken, "broken.yaml")):
        (tmp_path / name).write_text(dump_config(config))
    run = Path(broken.run.dir)
    chance, kills = random.Random(20), 0
    while kills < KILLS:
        process = start(tmp_path / "broken.yaml", resume=(run / CONFIG).is_file())
        wait_for_decisions(run, lines_of(run) + chance.randrange(4), process)
        time.sleep(chance.uniform(0.0, 0.3))
        assert process.poll() is None, f"the run ended after {kills} kills: make it longer"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert lines_of(run) > 2  # kills did not all fall into the start
    process = start(tmp_path / "broken.yaml", resume=True)
    assert process.wait() == 0
    assert remains(run) == remains(Path(whole.run.dir))


def start(config: Path, *, resume: bool) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mixgym", "finetune", str(config)]
    with (config.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, *(["--resume"] if resume else [])], stderr=log, stdout=log
        )


def lines_of(run: Path) -> int:
    path = run / "decisions.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for_decisions(run: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the process has taken decisions: a resumed one cuts the file before it adds."""
    deadline = time.monotonic() + 60
    seen = (run / "decisions.jsonl").stat().st_mtime_ns if lines_of(run) else 0
    while time.monotonic() < deadline and process.poll() is None:
        if lines_of(run) > count and (run / "decisions.jsonl").stat().st_mtime_ns > seen:
            return
        time.sleep(0.005)


# --- resume ---------------------------------------------------------------------------------------


def test_a_finished_run_resumes_to_its_summary(make_config: Make) -> None:
    config = make_config("run")
    summary = finetune(config)
    before = {path: path.read_bytes() for path in Path(config.run.dir).rglob("*") if path.is_file()}
    assert finetune(config, resume=True) == json.loads(json.dumps(summary))
    after = {path: path.read_bytes() for path in Path(config.run.dir).rglob("*") if path.is_file()}
    assert after == before


def test_seconds_of_all_processes_count(make_config: Make, tick: Tick) -> None:
    config = make_config("run")
    storage.on_failpoint = crash_at(len(count_failpoints(make_config("whole"))))
    with pytest.raises(_CrashError):
        finetune(config)
    storage.on_failpoint = None
    seconds = carry_on(config, tick)["time"]
    records = RunFolder.open(config.run.dir).read_decisions()
    for name in ("train_seconds", "measure_seconds", "cpu_seconds"):
        assert seconds[name] == pytest.approx(sum(r["time"][name] for r in records))


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"training": {"learning_rate": 0.5}}, r"with training.learning_rate = 0.001, not 0.5:"),
        ({"seed": 3}, "with seed = 0, not 3:"),
        ({"agent": {"name": "fixed", "options": {"weights": {"noise": 1}}}}, r"agent.name = uni"),
        ({"training": {"steps": 9, "packs": 3}}, r"steps = 5, not 9 \(and training.packs\)"),
    ],
)
def test_resume_refuses_another_configuration(
    make_config: Make, section: dict[str, Any], named: str
) -> None:
    config = make_config("run")
    RunFolder.create(config.run.dir, config)
    with pytest.raises(ConfigError, match=named):
        finetune(make_config("run", **section), resume=True)


def test_resume_without_a_run_and_start_over_a_run_are_refused(make_config: Make) -> None:
    config = make_config("run")
    with pytest.raises(RunError, match="holds no run"):
        finetune(config, resume=True)
    RunFolder.create(config.run.dir, config)
    with pytest.raises(RunError, match="holds a run already; pass --resume"):
        finetune(config)


# --- failures -------------------------------------------------------------------------------------


def command(tmp_path: Path, config: RunConfig, *arguments: str) -> Result:
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    return CliRunner().invoke(app, ["finetune", str(path), *arguments], prog_name="mixgym")


def error_line(result: Result) -> str:
    """The one line that is not of the progress bar."""
    (line,) = [line for line in result.stderr.splitlines() if "mixgym: " in line]
    assert "Traceback" not in result.output
    return line


def test_a_diverging_run_stops_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = OptimiserSteps._backward

    def diverging(self: Any, batch: Any, part: int, normaliser: float) -> Any:
        return backward(self, batch, part, np.nan if self.optimisation.steps == 3 else normaliser)

    monkeypatch.setattr(OptimiserSteps, "_backward", diverging)
    config = make_config("run")
    result = command(tmp_path, config)
    run = RunFolder.open(config.run.dir)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert result.exit_code == 1
    line = error_line(result)
    assert "the training loss is nan at step 4 (decision 4, shares: addition 0.5" in line
    assert f"the last good checkpoint is {latest[1]} (decision 2); lower training.learn" in line
    summary = run.read_summary()
    assert summary is not None
    assert summary["status"] == "diverged"
    assert summary["failure"] in line
    assert len(run.read_decisions()) == 3

    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(latest[1] / "environment" / "learner")
    with pytest.raises(DivergenceError):  # the same again, bit for bit
        finetune(config, resume=True)
    monkeypatch.setattr(OptimiserSteps, "_backward", backward)
    assert finetune(config, resume=True)["status"] == "finished"


def test_a_huge_learning_rate_diverges_by_itself(tmp_path: Path, make_config: Make) -> None:
    rate = {"learning_rate": 1e30, "warmup": 0.0, "clip": None, "schedule": "constant"}
    config = make_config("run", training=rate)
    result = command(tmp_path, config)
    assert result.exit_code == 1
    assert "there is no checkpoint yet; lower training.learning_rate" in error_line(result)


def test_a_test_split_that_is_not_finite_names_the_checkpoint(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = causal_lm.CausalLM.evaluate

    def diverging(self: Any, split: str) -> Any:
        if split == "test":
            raise DivergenceError("the test loss of source 'addition' is not finite")
        return evaluate(self, split)

    monkeypatch.setattr(causal_lm.CausalLM, "evaluate", diverging)
    with pytest.raises(DivergenceError, match=r"test loss of .*; the last good checkpoint is"):
        finetune(make_config("run"))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"agent": {"name": "unifrom"}},
            "agent.name=unifrom: unknown algorithm; did you mean uniform?",
        ),
        (
            {"agent": {"name": "uniform", "options": {"tua": 1}}},
            "agent.options.tua: uniform has no such option",
        ),
        ({"agent": {"name": "temperature", "options": {"tau": -1}}}, "agent.options.tau=-1"),
        (
            {"agent": {"name": "fixed", "options": {"weights": {"maths": 1}}}},
            "'maths' is not a source (sources: addition, noise)",
        ),
        ({"sources": {"a": {"embedded": "addition", "rows": 60, "target": 0}}}, "target"),
        ({"sources": {"a": {"path": "/nowhere/rows.jsonl"}}}, "/nowhere/rows.jsonl"),
        ({"model": {"name": "./not/there"}}, "model.name=./not/there: cannot be loaded"),
    ],
)
def test_misuse_is_one_line_and_leaves_nothing(
    tmp_path: Path, make_config: Make, sections: dict[str, Any], words: str
) -> None:
    result = command(tmp_path, make_config("run", **sections))
    assert result.exit_code == 2, result.output
    assert words in error_line(result)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


# --- what a run leaves ----------------------------------------------------------------------------


def test_the_result_folder_generates(make_config: Make) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = finetune(make_config("run"))
    tokenizer = AutoTokenizer.from_pretrained(summary["model"])
    model = AutoModelForCausalLM.from_pretrained(summary["model"])
    prompt = tokenizer("47+85", return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert prompt.input_ids.shape[1] < out.shape[1] <= prompt.input_ids.shape[1] + 3
    assert isinstance(tokenizer.decode(out[0]), str)


def test_the_summary_agrees_with_the_decisions(make_config: Make) -> None:
    config = make_config(
        "run", agent={"name": "fixed", "options": {"weights": {"addition": 3, "noise": 1}}}
    )
    summary = finetune(config)
    records = RunFolder.open(config.run.dir).read_decisions()
    tokens = np.diff([0, *(record["supervised_tokens"] for record in records)])
    for name, row in summary["sources"].items():
        given = sum(
            record["share"][name] * count for record, count in zip(records, tokens, strict=True)
        )
        assert row["share"] == pytest.approx(given / tokens.sum(), rel=1e-12)
        assert row["epochs"] == records[-1]["epochs"][name]
    assert sum(row["share"] for row in summary["sources"].values()) == pytest.approx(1)
    assert summary["sources"]["addition"]["share"] == pytest.approx(0.75, abs=0.1)
    assert summary["sources"]["noise"]["target"] == 0
    assert summary["test"]["mean_after"] == summary["sources"]["addition"]["test_after"]
    assert summary["return"] == pytest.approx(sum(r["reward"]["global"] for r in records))
    assert summary["steps"] == summary["decisions"] == len(records) == 5
    assert summary["cost"] == records[-1]["cost"]
    seconds = summary["time"]
    spent = {
        name: sum(r["time"][name] for r in records)
        for name in seconds
        if name in records[0]["time"]
    }
    parts = spent["plan_seconds"] + spent["train_seconds"] + spent["measure_seconds"]
    assert seconds["measured_share"] == pytest.approx(spent["measure_seconds"] / parts)
    assert seconds["tokens_per_cpu_second"] == pytest.approx(
        summary["cost"]["train_tokens"] / spent["cpu_seconds"]
    )


def test_curves_leave_no_model(make_config: Make) -> None:
    summary = finetune(make_config("run", sources="embedded", environment={"learner": "curves"}))
    assert summary["model"] is None
    assert summary["test"]["mean_after"] < summary["test"]["mean_before"]


def test_tensorboard_can_be_left_out(make_config: Make) -> None:
    config = make_config("run", run={"tensorboard": False})
    finetune(config)
    assert not (Path(config.run.dir) / "tensorboard").exists()


def test_the_bar_is_shown_on_request(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(make_config("silent"))
    assert capsys.readouterr() == ("", "")
    finetune(make_config("shown"), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "5/5" in shown.err
    assert "tok/s | addition 50% noise 50%" in shown.err
    for unit, budget in (("supervised_tokens", 100), ("tokens", 400)):
        finetune(make_config(unit, training={unit: budget}), progress=True)
        assert f"/{budget} [" in capsys.readouterr().err


def test_json_is_all_of_the_standard_output(tmp_path: Path, make_config: Make) -> None:
    config = make_config("run")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    result = subprocess.run(
        [sys.executable, "-m", "mixgym", "finetune", str(path), "--json"],
        capture_output=True,
        check=True,
    )
    summary = json.loads(result.stdout)
    assert summary["status"] == "finished"
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_the_table_is_printed_without_json(tmp_path: Path, make_config: Make) -> None:
    result = command(tmp_path, make_config("run"))
    assert result.exit_code == 0
    assert "uniform: 5 steps" in result.stdout
    for word in ("addition", "noise", "target mean", "tokens per CPU-second", "model in"):
        assert word in result.stdout


# --- real text ------------------------------------------------------------------------------------


def test_real_text(tmp_path: Path) -> None:
    data = os.environ.get("MIXGYM_DATA")
    if data is None:
        pytest.skip("MIXGYM_DATA is not set: give it a folder that holds multitask/")
    names = ("general", "math", "medical", "finance", "code", "noise")
    settings = {
        "sources": {
            name: {"path": f"{data}/multitask/{name}", "target": float(name != "noise")}
            for name in names
        },
        "data": {"max_length": 256, "held_out_tokens": 500},
        "model": {"name": "0.1m"},
        "training": {"steps": 16, "interval": 8, "packs": 8},
        "run": {"dir": str(tmp_path / "run")},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["finetune", str(path), "--json"], prog_name="mixgym")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["decisions"] == 2
    assert summary["sources"]["noise"]["target"] == 0
    assert summary["test"]["mean_after"] < summary["test"]["mean_before"]
    for row in summary["sources"].values():
        assert row["share"] == pytest.approx(1 / 6, abs=0.1)
