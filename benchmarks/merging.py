"""Time and memory of merging four Llamas of 542 MB, beside mergekit where it is installed.

    python benchmarks/merging.py --work FOLDER [--mergekit PATH/TO/mergekit-yaml]

Tools take turns, each run is a process of its own with one thread, and medians are reported. CPU
seconds (user and system) are the comparable figure; wall time depends on what else runs. Start-up
is the same command on a model of 0.1 MB, run right before and right after; their mean is taken off.
Outputs are compared, so that a fast wrong answer fails: linear and ties with the float64 reference
rounded to bfloat16, selection by its shares and by closure. Needs 5 GB of disk, or 11 with
``--double``.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.common import parse

MODELS = ("base", "ft1", "ft2", "ft3")
MEGABYTE = 1e6
SAMPLE_SECONDS = 0.02
TARGET_RATIO = 0.33
TARGET_SELECT = 1.7
TARGET_RESAMPLE = 3.0
TARGET_ANON_MB = 100.0
TARGET_GROWTH_MB = 20.0
MIDPOINT_TOLERANCE = 1e-6

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 1.0, "normalize": True}},
    "ties": {"merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.5}},
    "dare_ties": {"merge_method": "dare_ties", "parameters": {"weight": 1.0, "density": 0.5}},
    "select": {"merge_method": "select", "parameters": {"resample": 0}},
    "select_all": {"merge_method": "select", "parameters": {"resample": "all"}},
}
SHARED = ("linear", "ties", "dare_ties")


def make_checkpoints(folder: Path, layers: int, small: bool = False) -> None:
    """Write base and three perturbed copies as bf16 in 200 MB shards; skip what is there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": 16}
    if small:
        sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    for number, name in enumerate(MODELS):
        if (folder / name / "config.json").is_file():
            continue
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters() if number else ():
            noise = torch.randn(parameter.shape, generator=generator) * 1e-3
            parameter.data.copy_(parameter.data.float() + noise)
        model.save_pretrained(folder / name, max_shard_size="200MB")


def write_recipe(folder: Path, name: str) -> Path:
    """Write the recipe that both tools read."""
    content = dict(RECIPES[name])
    content["models"] = [{"model": str(folder / model)} for model in MODELS[1:]]
    if name != "linear" and name != "select":
        content["base_model"] = str(folder / "base")
    content["dtype"] = "bfloat16"
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def commands(folder: Path, name: str, out: Path, mergekit: str | None) -> dict[str, list[str]]:
    """Return tool -> command line."""
    recipe = str(write_recipe(folder, name))
    found = {"mixgym": [sys.executable, __file__, "--run", recipe, "--out", str(out)]}
    if mergekit and name in SHARED:
        found["mergekit"] = [mergekit, recipe, str(out), "--no-copy-tokenizer", "--quiet"]
        found["mergekit"] += ["--random-seed", "0"]
    return found


def run_measured(command: list[str]) -> dict[str, float]:
    """Run a command with one thread; return wall, CPU, peak and anonymous memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = [0.0, 0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss_mb": peak[1] / MEGABYTE,
        "anon_mb": peak[0] / MEGABYTE,
        "load": os.getloadavg()[0],
    }


def _watch(pid: int, peak: list[float]) -> None:
    path = Path(f"/proc/{pid}/status")
    while True:
        try:
            text = path.read_text()
        except OSError:
            return
        found = dict(line.split(":", 1) for line in text.splitlines() if "kB" in line)
        if "RssAnon" not in found:
            return
        # ru_maxrss would count the parent's pages, which a forked child begins with
        for i, key in enumerate(("RssAnon", "VmHWM")):
            peak[i] = max(peak[i], float(found[key].split()[0]) * 1024)
        time.sleep(SAMPLE_SECONDS)


def tensor_chunks(folder: Path, name: str, chunk: int = 1 << 21) -> Any:
    """Yield a bf16 tensor's values as float64, in chunks of its flat order."""
    import torch
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.is_file():
        file = json.loads(index.read_text())["weight_map"][name]
    with safe_open(folder / file, framework="pt") as handle:
        flat = handle.get_tensor(name).reshape(-1)
        for start in range(0, flat.numel(), chunk):
            yield flat[start : start + chunk].to(torch.float64).numpy()


def tensor_names(folder: Path) -> list[str]:
    """Return the names in a checkpoint."""
    from safetensors import safe_open

    names = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            names += list(handle.keys())
    return sorted(names)


def whole(folder: Path, name: str) -> np.ndarray:
    """Return a tensor as float64."""
    return np.concatenate(list(tensor_chunks(folder, name)))


def ties_reference(base: np.ndarray, models: list[np.ndarray], density: float) -> np.ndarray:
    """Return TIES in float64 over whole tensors, by sorting."""
    deltas = []
    for model in models:
        delta = model - base
        kept = max(1, int(density * delta.size))
        order = np.argsort(-np.abs(delta), kind="stable")[:kept]
        trimmed = np.zeros_like(delta)
        trimmed[order] = delta[order]
        deltas.append(trimmed)
    sign = np.where(sum(deltas) >= 0, 1.0, -1.0)
    agrees = [(delta * sign) > 0 for delta in deltas]
    count = np.maximum(sum(a.astype(int) for a in agrees), 1)
    return base + sum(d * a for d, a in zip(deltas, agrees, strict=True)) / count


def compare_reference(got: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """Return elements that are not the rounded reference, and those of them not at a midpoint."""
    import torch

    rounded = torch.from_numpy(expected).to(torch.float32).to(torch.bfloat16)
    wrong = np.flatnonzero(rounded.to(torch.float64).numpy() != got)
    if wrong.size == 0:
        return 0, 0
    near, other = got[wrong], rounded.to(torch.float64).numpy()[wrong]
    middle = (near + other) / 2
    scale = np.maximum(np.abs(expected[wrong]), np.finfo(np.float32).tiny)
    off = np.abs(expected[wrong] - middle) > MIDPOINT_TOLERANCE * scale
    return int(wrong.size), int(off.sum())


def check_output(name: str, folder: Path, out: Path, tensors: list[str]) -> str:
    """Compare an output with the reference; raise on a wrong one."""
    total = wrong = off = 0
    counts = np.zeros(3)
    for tensor in tensors:
        models = [whole(folder / model, tensor) for model in MODELS[1:]]
        got = whole(out, tensor)
        total += got.size
        if name in ("linear", "ties"):
            expected = sum(models) / 3
            if name == "ties":
                expected = ties_reference(whole(folder / "base", tensor), models, 0.5)
            differ, beyond = compare_reference(got, expected)
            wrong, off = wrong + differ, off + beyond
        elif name.startswith("select"):
            hits = [got == model for model in models]
            if not np.logical_or.reduce(hits).all():
                raise SystemExit(f"{name}: an element of {tensor} is in no model")
            distinct = (models[0] != models[1]) & (models[1] != models[2])
            distinct &= models[0] != models[2]
            counts += [int((hit & distinct).sum()) for hit in hits]
        else:
            base = whole(folder / "base", tensor)
            untouched = np.logical_and.reduce([model == base for model in models])
            off += int((got[untouched] != base[untouched]).sum())
    if name.startswith("select"):
        shares = counts / counts.sum()
        bound = 5 * np.sqrt(2 / 9 / counts.sum())
        if name == "select" and np.abs(shares - 1 / 3).max() > bound:
            raise SystemExit(f"select: shares {shares} are off by more than {bound:.1e}")
        return "shares " + ", ".join(f"{share:.5f}" for share in shares)
    if off:
        raise SystemExit(f"{name}: {off} of {total} elements are wrong, {wrong} differ in all")
    return f"{total - wrong} of {total} elements equal the rounded reference"


def agreement(name: str, ours: Path, theirs: Path, tensors: list[str]) -> str:
    """Return how many elements of two outputs are equal."""
    same = total = 0
    for tensor in tensors:
        one, two = whole(ours, tensor), whole(theirs, tensor)
        same += int((one == two).sum())
        total += one.size
    return f"{same / total:.4%} of the elements equal mergekit's"


def median(runs: list[dict[str, float]], key: str) -> float:
    """Return the median of one measure."""
    return statistics.median(run[key] for run in runs)


Runs = dict[tuple[str, str], list[dict[str, float]]]


def measure(
    folder: Path, names: list[str], reps: int, mergekit: str | None, after: Callable[..., None]
) -> Runs:
    """Run all methods with the tools taking turns; ``after`` sees each method's outputs.

    Each run stands between two on the small models, whose mean CPU time is its start-up: ``net``
    is without it.
    """
    runs: Runs = {}
    small = folder.parent / "small"
    for rep in range(reps):
        for name in names:
            outs = {}
            for tool in commands(folder, name, folder / "x", mergekit):
                out = folder / f"out_{tool}_{name}"
                last = run_pair(small, folder, name, tool, out, mergekit)
                runs.setdefault((tool, name), []).append(last)
                outs[tool] = out
                print(
                    f"  {name} {tool}: {last['net']:.2f} s CPU net, {last['start']:.2f} s "
                    f"start-up, {last['wall']:.1f} s wall, {last['anon_mb']:.0f} MB anonymous, "
                    f"load {last['load']:.1f}",
                    flush=True,
                )
            after(name, outs, rep)
            for out in outs.values():
                shutil.rmtree(out, ignore_errors=True)
    return runs


def run_pair(
    small: Path, big: Path, name: str, tool: str, out: Path, mergekit: str | None
) -> dict[str, float]:
    """Measure a merge of the big models between two of the small ones."""
    starts = [run_one(small, name, tool, small / f"out_{tool}_{name}", mergekit)]
    whole = run_one(big, name, tool, out, mergekit)
    starts += [run_one(small, name, tool, small / f"out_{tool}_{name}", mergekit)]
    start = statistics.mean(run["cpu"] for run in starts)
    above = whole["anon_mb"] - statistics.mean(run["anon_mb"] for run in starts)
    return {**whole, "start": start, "net": whole["cpu"] - start, "above_mb": above}


def run_one(folder: Path, name: str, tool: str, out: Path, mergekit: str | None) -> dict[str, Any]:
    """Measure one merge into a fresh folder."""
    shutil.rmtree(out, ignore_errors=True)
    return run_measured(commands(folder, name, out, mergekit)[tool])


def warm(folder: Path) -> None:
    """Read all inputs once, so that they lie in the page cache."""
    for path in folder.glob("*/*.safetensors"):
        with path.open("rb") as handle:
            while handle.read(1 << 24):
                pass


def report(runs: Runs) -> list[str]:
    """Print the table and return the targets that were missed."""
    print("\n| method | tool | CPU net, s | start-up CPU, s | wall, s | peak RSS, MB | anon, MB |")
    print("|---|---|---|---|---|---|---|")
    for (tool, name), found in runs.items():
        print(
            f"| {name} | {tool} | {median(found, 'net'):.2f} | {median(found, 'start'):.2f} "
            f"| {median(found, 'wall'):.1f} | {median(found, 'rss_mb'):.0f} "
            f"| {median(found, 'anon_mb'):.0f} |"
        )
    net = {key: median(found, "net") for key, found in runs.items()}
    missed = []

    def target(text: str, value: float, limit: float) -> None:
        verdict = "met" if value <= limit else "MISSED"
        print(f"{text}: {value:.2f} (target {limit:g}): {verdict}")
        if value > limit:
            missed.append(text)

    print()
    for name in SHARED:
        if ("mergekit", name) in net:
            ratio = net["mixgym", name] / net["mergekit", name]
            target(f"{name}, net CPU over mergekit's", ratio, TARGET_RATIO)
    if ("mixgym", "linear") in net:
        for name, limit in (("select", TARGET_SELECT), ("select_all", TARGET_RESAMPLE)):
            if ("mixgym", name) in net:
                ratio = net["mixgym", name] / net["mixgym", "linear"]
                target(f"{name}, net CPU over linear's", ratio, limit)
    for (tool, name), found in runs.items():
        if tool == "mixgym":
            above = median(found, "above_mb")
            target(f"{name}, anonymous MB above the tiny model's", above, TARGET_ANON_MB)
    return missed


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/merging"),
        help="folder for checkpoints, reused if filled",
    )
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"))
    parser.add_argument("--methods", default=",".join(RECIPES))
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--double", action="store_true", help="memory of a larger model, too")
    parser.add_argument("--check", default="all", help="all tensors, or a regular number of them")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    work = Path(tempfile.gettempdir()) / "mixgym-smoke-merging"
    return parse(parser, work=work, methods="linear,select", reps=1, layers=1, check="3")


def main() -> int:
    """Run the benchmark; the exit code is 1 if a target was missed."""
    options = read_arguments()
    if options.run:
        from mixgym.trainer.merging import merge_command

        merge_command(recipe=options.run, out=options.out)
        return 0
    names = options.methods.split(",")
    big, small = options.work / "big", options.work / "small"
    make_checkpoints(big, options.layers)
    make_checkpoints(small, 2, small=True)
    if not options.mergekit:
        print("mergekit-yaml not found: its columns are left out (pip install mergekit)")
    warm(big)
    tensors = tensor_names(big / "base")
    if options.check != "all":
        tensors = tensors[:: max(1, len(tensors) // int(options.check))]

    def after(name: str, outs: dict[str, Path], rep: int) -> None:
        if rep:
            return
        print(f"  {name}: {check_output(name, big, outs['mixgym'], tensors)}", flush=True)
        if "mergekit" in outs:
            print("  " + agreement(name, outs["mixgym"], outs["mergekit"], tensors), flush=True)

    runs = measure(big, names, options.reps, options.mergekit, after)
    missed = report(runs)
    if options.double:
        missed += double(options, names, runs)
    return 1 if missed and not options.smoke else 0  # two small layers reach no target


def double(options: argparse.Namespace, names: list[str], runs: Runs) -> list[str]:
    """Measure memory on a model with two and a half times the parameters."""
    folder = options.work / "double"
    make_checkpoints(folder, options.layers * 3)
    missed = []
    again = measure(folder, names, 1, None, lambda *_: None)
    for (tool, name), found in again.items():
        growth = median(found, "anon_mb") - median(runs[tool, name], "anon_mb")
        print(f"{name}: {growth:+.1f} MB anonymous for the larger model")
        if growth > TARGET_GROWTH_MB:
            missed.append(f"{name}, growth")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
