"""Fine-tuning in several processes: one run, decided and recorded by one of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixgym.envs.errors import DivergenceError
from mixgym.envs.ranks import rank
from mixgym.trainer.config import load_config
from mixgym.trainer.finetuning.finetune import finetune, follow

Ranks = Callable[..., list[Any]]

OVERRIDES = [
    "training.steps=6",
    "training.interval=2",
    "training.packs=4",
    "data.max_length=128",
    "run.exact_match=0",
    "run.save_every=1",
    "run.tensorboard=false",
]


def start(folder: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    """This rank's part of a run."""
    config = load_config(None, [*OVERRIDES, *overrides, f"run.dir={json.dumps(str(folder))}"])
    if rank() == 0:
        return finetune(config, resume=resume)
    follow(config, resume=resume)
    return {}


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time"]
    return lines


def check_close(one: Any, two: Any, where: str = "") -> None:
    """The same, but for the order of sums in float32."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            check_close(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            check_close(a, b, f"{where}[{i}]")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5), where
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    start(folder)
    return folder


def test_two_ranks_are_one_run_and_resume_to_the_same_bits(
    run_ranks: Ranks, alone: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    summaries = run_ranks(2, start, both)
    assert summaries[0]["status"] == "finished"
    assert summaries[1] == {}
    ignored = ("data_imbalance", "attention_imbalance", "tokens_per_device", "micro_steps")
    one, two = records(alone), records(both)
    for record in [*one, *two]:
        for name in [*ignored, "seconds", "no_wait_seconds"]:
            del record["packing"][name]  # what the processes make of the same steps
    check_close(one, two)
    assert (both / "model" / "config.json").is_file()
    killed = tmp_path / "killed"
    shutil.copytree(both, killed)
    (killed / "summary.json").unlink()
    for left in ("checkpoints/step-2", "checkpoints/step-3", "model"):
        shutil.rmtree(killed / left, ignore_errors=True)
    run_ranks(2, lambda: start(killed, resume=True))
    assert records(killed) == records(both)
    weights = [folder / "model" / "model.safetensors" for folder in (killed, both)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = run_ranks(2, lambda: start(killed, resume=True))
    assert again[0]["status"] == "finished"


def test_ranks_that_share_packs_are_the_same_run(
    run_ranks: Ranks, alone: Path, tmp_path: Path
) -> None:
    groups = 'data.packing.groups=[{"length": 128, "degree": 2, "checkpointed": 1}]'
    shared = tmp_path / "shared"
    run_ranks(2, start, shared, groups)
    one, two = records(alone), records(shared)
    for a, b in zip(one, two, strict=True):
        check_close(a["loss"], b["loss"])
        assert b["packing"]["communication"] == 1


def test_a_run_that_diverges_stops_every_rank(run_ranks: Ranks, tmp_path: Path) -> None:
    def diverge() -> str:
        try:
            start(tmp_path / "run", "training.learning_rate=1e30", "training.clip=null")
        except DivergenceError as error:
            return str(error)
        return ""

    first, second = run_ranks(2, diverge)
    assert "lower training.learning_rate" in first
    assert "decision" in second
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    start_two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    return subprocess.run(
        [*start_two, "-m", "mixgym", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.slow
def test_torchrun_starts_the_same_run(alone: Path, tmp_path: Path) -> None:
    done = torchrun("finetune", *OVERRIDES, "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    losses = [[r["loss"]["train_mean"] for r in records(f)] for f in (alone, tmp_path / "run")]
    assert np.allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_commands_of_one_process_say_so() -> None:
    refused = torchrun("plan")
    assert refused.returncode != 0
    assert "torchrun started 2 processes, and only mixgym finetune" in refused.stderr
