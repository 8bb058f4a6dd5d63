"""``mixgym profile``: the rates of this machine, for the cost model of packing."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from mixgym.envs import storage
from mixgym.envs.learners.models.attention import choose_attention
from mixgym.envs.learners.models.loading import load_model
from mixgym.envs.learners.profiling import profile_model
from mixgym.envs.packing.costs.descriptions import model_of
from mixgym.envs.packing.costs.rate_fitting import HUGE, fit_hardware
from mixgym.envs.packing.setup import find_hardware, hardware_text
from mixgym.trainer.config import RunConfig
from mixgym.trainer.runs.tables import show


def profile_command(
    config: RunConfig, *, out: Path, repeats: int = 3, json_output: bool = False
) -> dict[str, Any]:
    """Time the model of a configuration, write the machine to ``out``, and say how well it fits.

    Raises:
        MixgymError: if the model cannot be loaded, or its packs are too short to profile.
    """
    import torch

    from mixgym.trainer.finetuning.finetune import quiet_transformers

    quiet_transformers()
    torch.set_num_threads(config.model.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(config.model, config.data.max_length).to(device)
    bf16 = config.model.precision == "bf16"
    choose_attention(model, config.model.attention, device, config.data.max_length, bf16=bf16)
    # work on a GPU is not on this process's CPU clock
    clock = time.process_time if device == "cpu" else time.perf_counter
    points = profile_model(model, config.data.max_length, repeats=repeats, clock=clock)
    base = find_hardware(config.data.packing.hardware)
    fit = fit_hardware(points, model_of(model.config), base)
    report = {
        "model": config.model.name,
        "device": device,
        "points": len(points),
        "largest_error": float(np.abs(fit.errors).max()),
        "mean_error": float(np.abs(fit.errors).mean()),
        "seconds": [point.seconds for point in points],
    }
    storage.write_text(out, hardware_text(fit.hardware, profile=report))
    found = {
        "dense_flops": fit.hardware.dense_rate,
        "attention_flops": fit.hardware.attention_rate,
        "fixed_seconds": fit.hardware.fixed_seconds,
    }
    if not json_output:
        show(*_lines(report | found, out))
    return {**report, **found, "file": str(out)}


def _rate(flops: float) -> str:
    """A rate in words; packs that are short enough do not show the time that one takes."""
    return "too little to measure for" if flops >= HUGE else f"{flops / 1e9:.1f} GFLOP/s"


def _lines(report: dict[str, Any], out: Path) -> list[str]:
    return [
        f"{report['model']} on {report['device']}: {_rate(report['dense_flops'])} "
        f"dense, {_rate(report['attention_flops'])} attention, "
        f"{1e3 * report['fixed_seconds']:.2f} ms per micro-step",
        f"{report['points']} packs timed; the fit is off by {100 * report['mean_error']:.0f}% on "
        f"average, {100 * report['largest_error']:.0f}% at most",
        f"written: {out} (use it with data.packing.hardware={out})",
    ]
