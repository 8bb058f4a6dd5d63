"""Pictures of the load: how busy each device is in each step, and how long it waits."""

from typing import Any

import numpy as np

from mixgym.envs.arrays import FloatArray
from mixgym.trainer.simulate.cluster import Timeline

_COLUMNS = 240  # of a picture; longer runs are averaged


def load_figure(timelines: dict[str, Timeline]) -> Any:
    """A matplotlib figure, one row a method: busy share by device and time, and waiting.

    Args:
        timelines: by method; all are drawn on the time axis of the longest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(timelines)
    figure = Figure(figsize=(9.0, 0.9 + 1.5 * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, 2, squeeze=False, width_ratios=[5, 1], sharex="col")
    longest = max(line.seconds for line in timelines.values())
    image = None
    for row, (name, line) in enumerate(timelines.items()):
        load = load_over_time(line, longest)
        devices = len(load)
        image = axes[row][0].imshow(
            np.ma.masked_invalid(load),
            aspect="auto",
            vmin=0,
            vmax=1,
            cmap="viridis",
            interpolation="nearest",
            extent=(0, longest, devices - 0.5, -0.5),
        )
        axes[row][0].set_ylabel(f"{name}\ndevice", fontsize="small")
        axes[row][1].barh(np.arange(devices), line.waiting(), height=1.0, color="tab:red")
        axes[row][1].set_ylim(devices - 0.5, -0.5)
        axes[row][1].set_xlim(0, 1)
        axes[row][1].set_title(f"waits {100 * line.waiting().mean():.0f}%", fontsize="small")
    axes[-1][0].set_xlabel("seconds")
    axes[-1][1].set_xlabel("share waiting")
    if image is not None:
        figure.colorbar(image, ax=axes[:, 0], label="busy", location="left")
    return figure


def load_over_time(line: Timeline, longest: float) -> FloatArray:
    """float64[devices, _COLUMNS], busy share in each slice of ``longest`` seconds; NaN afterwards.

    Inside an optimiser step a device's share is taken as even.
    """
    edges = np.linspace(0, longest, _COLUMNS + 1)
    busy = line.busy()
    running = np.concatenate([np.zeros((1, busy.shape[1])), np.cumsum(busy, axis=0)])
    times = np.concatenate([[0.0], line.step_end])
    done = np.stack([np.interp(edges, times, column) for column in running.T])
    load = np.diff(done, axis=1) / np.diff(edges)
    load[:, edges[:-1] >= line.seconds] = np.nan
    return load
