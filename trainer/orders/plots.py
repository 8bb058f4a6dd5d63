"""Pictures of a study."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixgym.trainer.orders.analysis import PositionEffect, binned_loss
from mixgym.trainer.orders.merges import FLOAT32, MERGES, Merged
from mixgym.trainer.orders.runs import RunRecord

GREY, COLOURS = "0.65", ("tab:blue", "tab:orange", "tab:green")
_STYLES = ("-", "--", ":")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The picture as a PNG file, without a date, so that equal pictures are equal bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()


def effect_figure(effects: Mapping[str, PositionEffect]) -> Any:
    """Loss by position beside the other runs: a panel for the first epoch and each control."""
    figure = _figure(3.0 * len(effects), 2.8)
    panels = figure.subplots(1, len(effects), sharey=True, squeeze=False)[0]
    for axes, (name, effect) in zip(panels, effects.items(), strict=True):
        places = np.array(effect.places)
        values = np.array([bin_.value for bin_ in effect.effect])
        low = np.array([bin_.low for bin_ in effect.effect])
        high = np.array([bin_.high for bin_ in effect.effect])
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.errorbar(places, values, [values - low, high - values], fmt="o", markersize=3, lw=1)
        fitted = effect.slope.value * (places - 0.5)
        axes.plot(places, fitted, color="tab:red", linewidth=1)
        axes.set_title(f"{name}\nslope {effect.slope.value:+.4f}", fontsize="medium")
        axes.set_xlabel("position")
    panels[0].set_ylabel("final loss beside other runs")
    return figure


def validation_figure(base: float, runs: Sequence[RunRecord], merges: Sequence[Merged]) -> Any:
    """Validation loss of single and merged models over training steps."""
    figure = _figure(5.6, 3.6)
    axes = figure.add_subplot()
    for k, run in enumerate(runs):
        steps, losses = zip(*[(0, base), *run.validation], strict=True)
        axes.plot(steps, losses, color=GREY, linewidth=1, label="single runs" if k == 0 else None)
    for name, colour, style in zip(MERGES, COLOURS, _STYLES, strict=True):
        points = [(m.step, m.select) for m in merges if m.name == name and m.precision == FLOAT32]
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, style, color=colour, marker="o", markersize=3, label=name)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(fontsize="small")
    return figure


def anchor_figure(anchor: RunRecord, merges: Sequence[Merged], bins: int) -> Any:
    """Training loss by the anchor run's first-epoch position, with the merges beside it."""
    figure = _figure(5.6, 3.6)
    axes = figure.add_subplot()
    centres = (np.arange(bins) + 0.5) / bins
    own = binned_loss(anchor.losses, anchor.first, bins)
    axes.plot(centres, own, color="black", marker="o", markersize=3, label="run 0")
    for name, colour, style in zip(MERGES, COLOURS, _STYLES, strict=True):
        for merged in merges:
            if merged.name == name and merged.losses is not None:
                losses = binned_loss(np.array(merged.losses), anchor.first, bins)
                axes.plot(
                    centres, losses, style, color=colour, marker="o", markersize=3, label=name
                )
    axes.set_xlabel("position in the first epoch of run 0")
    axes.set_ylabel("final training loss, nats per token")
    axes.legend(fontsize="small")
    return figure
