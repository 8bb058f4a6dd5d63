"""How long a command takes to start on a large Parquet file, the first and the second time.

    python benchmarks/data_start.py [--rows N] [--json]

A file of drawn text is written (pairs of prompt and completion, 10 to 120 words), and a small model
with a tokenizer trained on it. Measured are whole processes, imports and all: `mixgym plan`, and
`mixgym finetune` of a single optimiser step without a model left; both first with an empty cache,
then again. The same two on a file of 200 rows say what the imports and the step alone take. Beside
them `datasets` with the same tokenizer (`map` in as many processes), and TRL's SFTTrainer up to its
first step where TRL is installed, on the same file. CPU seconds are those of all processes of a
command, memory the largest that one of them ever held (pages of mapped files included).
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse

FEW = 200
LENGTH = 256


def write_rows(path: Path, count: int) -> None:
    """A Parquet file of drawn text."""
    import pyarrow as pa
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, size=(5000, 8), dtype=np.uint8)
    sizes = rng.integers(2, 9, size=5000)
    words = np.array([bytes(w[:n]).decode() for w, n in zip(letters, sizes, strict=True)])
    columns = {
        name: [" ".join(words[rng.integers(5000, size=n)]) for n in rng.integers(low, 60, count)]
        for name, low in (("prompt", 10), ("completion", 5))
    }
    pa.parquet.write_table(pa.table(columns), path, row_group_size=20_000)


def prepare(folder: Path, rows: int) -> None:
    """The files, the model, and a configuration for each file."""
    import pyarrow.parquet

    from mixgym.envs.learners.models.loading import load_model
    from mixgym.envs.learners.models.small_models import build_tokenizer
    from mixgym.envs.options import ModelOptions

    write_rows(folder / "many.parquet", rows)
    table = pyarrow.parquet.read_table(folder / "many.parquet")
    few = table.slice(0, min(FEW, rows))
    pyarrow.parquet.write_table(few, folder / "few.parquet")
    os.environ["MIXGYM_CACHE"] = str(folder / "cache")
    build_tokenizer(few.column("prompt").to_pylist(), 512).save_pretrained(folder / "model")
    load_model(ModelOptions(name="0.1m"), LENGTH).save_pretrained(folder / "model")
    for name in ("many", "few"):
        config = {
            "sources": {"text": {"path": str(folder / f"{name}.parquet")}},
            "model": {"name": str(folder / "model")},
            "data": {"max_length": LENGTH, "held_out_tokens": 200, "held_out_rows": 8},
            "training": {"steps": 1, "interval": 1},
            "run": {"keep_model": False, "keep_last": 0, "tensorboard": False},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config))


def measured(name: str, words: list[str], folder: Path) -> dict[str, Any]:
    """CPU seconds, seconds and memory of a command.

    Raises:
        RuntimeError: it failed.
    """
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "MIXGYM_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log"
    start = time.perf_counter()
    with log.open("wb") as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        command = [sys.executable, *words]
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "what": name,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "seconds": time.perf_counter() - start,
        "peak_gigabytes": used.ru_maxrss * unit / 1e9,
    }


def own_rows(folder: Path) -> list[dict[str, Any]]:
    """Our commands on few rows and, twice, on many."""
    plan = ["-m", "mixgym", "plan"]
    tune = ["-m", "mixgym", "finetune"]
    found = [
        measured(f"plan, {FEW} rows", [*plan, str(folder / "few.yaml")], folder),
        measured(
            f"finetune, {FEW} rows",
            [*tune, str(folder / "few.yaml"), "--out", str(folder / "run-few")],
            folder,
        ),
        measured("plan, first time", [*plan, str(folder / "many.yaml")], folder),
    ]
    for count in ("second", "third"):
        found.append(measured(f"plan, {count} time", [*plan, str(folder / "many.yaml")], folder))
    out = [str(folder / "many.yaml"), "--out"]
    found.append(
        measured("finetune, rows in the cache", [*tune, *out, str(folder / "run-2")], folder)
    )
    no_cache = ["data.cache=null", *out, str(folder / "run-1")]
    found.append(measured("finetune, without a cache", [*tune, *no_cache], folder))
    return found


def their_rows(folder: Path) -> list[dict[str, Any]]:
    """`datasets` and, where it is installed, TRL, each twice."""
    found = []
    for name in ("datasets", *(("trl",) if importlib.util.find_spec("trl") else ())):
        words = [str(Path(__file__).parent / "support" / "other_starts.py"), name, str(folder)]
        for count in ("first", "second"):
            found.append(measured(f"{name}, {count} time", [*words, str(LENGTH)], folder))
    return found


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'command':<28} {'CPU s':>8} {'s':>8} {'GB':>6}"]
    for row in rows:
        lines.append(
            f"{row['what']:<28} {row['cpu_seconds']:>8.1f} {row['seconds']:>8.1f} "
            f"{row['peak_gigabytes']:>6.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parse(parser, rows=2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: what it takes would count as memory of all that are started later
        ready = multiprocessing.get_context("spawn").Process(
            target=prepare, args=(folder, arguments.rows)
        )
        ready.start()
        ready.join()
        if ready.exitcode:
            raise RuntimeError("the files could not be written")
        rows = [*own_rows(folder), *their_rows(folder)]
    if arguments.json:
        print(json.dumps({"rows": arguments.rows, "measured": rows}, indent=2))
    else:
        print(f"{arguments.rows:,} rows of Parquet")
        print(table_of(rows))


if __name__ == "__main__":
    main()
