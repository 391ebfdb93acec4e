"""A load test in one picture: how latencies are distributed, and how they went over time."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.serving_checks.loadtest import LoadResult

_BINS = 60


def plot_load(result: LoadResult, path: Path, *, title: str) -> None:
    """Write a PNG (or what the suffix says).

    Raises:
        ValueError: no request was answered.
    """
    if not result.latency_ms:
        raise ValueError("no request was answered, so there is nothing to plot")
    latency_ms, due_s = np.array(result.latency_ms), np.array(result.due_s)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shares, times = figure.subplots(1, 2)
    bins = np.geomspace(latency_ms.min(), latency_ms.max() * 1.001, _BINS)
    shares.hist(latency_ms, bins=bins, color="#4c72b0")
    for percentile, style in ((50, "-"), (99, "--"), (99.9, ":")):
        value = float(np.percentile(latency_ms, percentile))
        shares.axvline(value, color="black", linestyle=style, label=f"p{percentile:g} {value:.2f} ms")
    shares.set(xscale="log", xlabel="latency, ms", ylabel="requests", title=title)
    shares.legend()
    seconds = np.floor(due_s).astype(int)
    shown = np.unique(seconds)
    for percentile, style in ((50, "-"), (99, "--")):
        values = [float(np.percentile(latency_ms[seconds == second], percentile)) for second in shown]
        times.plot(shown, values, color="#4c72b0", linestyle=style, label=f"p{percentile} of each second")
    times.set(xlabel="seconds", ylabel="latency, ms", yscale="log")
    times.legend()
    figure.savefig(path, dpi=110)
