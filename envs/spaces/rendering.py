"""Pictures of a mixture: a stacked area over decisions, or bars in a terminal."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixgym.envs.arrays import FloatArray


def mixture_figure(names: tuple[str, ...], history: FloatArray, title: str = "") -> Any:
    """A matplotlib figure of the mixture over decisions.

    Args:
        names: of the K sources.
        history: float64[decisions, K].
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = np.arange(len(history) + 1)
    steps = np.concatenate([history, history[-1:]])
    axes.stackplot(edges, steps.T, labels=names, step="post")
    axes.set_xlim(0, max(len(history), 1))
    axes.set_ylim(0, 1)
    axes.set_xlabel("decision")
    axes.set_ylabel("weight")
    axes.set_title(title)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", reverse=True)
    return figure


def render_rgb(names: tuple[str, ...], history: FloatArray) -> NDArray[np.uint8]:
    """The same as uint8[height, width, 3]."""
    figure = mixture_figure(names, history)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def render_text(names: tuple[str, ...], weights: FloatArray, decision: int) -> str:
    """One line: the decision, and a bar and a percentage for each source."""
    blocks = " ▏▎▍▌▋▊▉█"
    bars = [
        f"{name} {blocks[round(8 * min(1.0, float(weight)))]} {100 * weight:.0f}%"
        for name, weight in zip(names, weights, strict=True)
    ]
    return f"decision {decision}: " + "  ".join(bars)
