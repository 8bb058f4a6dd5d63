"""Predicted curves beside seen ones."""

import io
from collections.abc import Sequence

import numpy as np

from mixgym.trainer.worlds.figures import Predicted

_RUNS = 5  # in a picture


def draw_curves(found: Predicted, names: Sequence[str]) -> bytes:
    """A PNG: a panel per source, a few runs each, seen (line) and predicted (dashes)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    shown = np.linspace(0, len(found.seen) - 1, min(_RUNS, len(found.seen))).astype(int)
    for k, axis in enumerate(axes.ravel()):
        if k >= len(names):
            axis.axis("off")
            continue
        for color, run in enumerate(shown):
            until = found.last[run] + 1
            axis.plot(found.seen[run, :until, k], color=f"C{color}", linewidth=1.2)
            axis.plot(found.world[run, :until, k], color=f"C{color}", linewidth=1.2, linestyle="--")
        axis.set_title(names[k], fontsize=9)
        axis.set_xlabel("decisions", fontsize=8)
        axis.set_ylabel("held-out NLL (nats)", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.suptitle("runs that the fit has not seen: recorded (line) and predicted (dashes)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
