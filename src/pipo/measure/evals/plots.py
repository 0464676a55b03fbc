"""Plots of accuracy against tokens per step, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PANEL_INCHES = (5.6, 3.8)
PIPO_COLOUR, REGULAR_COLOUR = "#1f6fb4", "#666666"
COLOURS = {"mtp": "#d1731f", "speculative": "#3a8a3a"}


@dataclass(frozen=True)
class Point:
    """One method, `pipo` at one threshold. `threshold` is None for the uncompressed ones, whose label is their name."""

    label: str
    figures: dict[str, Any]  # a method's figures from summary.json
    threshold: float | None = None


def plot_methods(path: Path, tasks: dict[str, list[Point]]) -> None:
    """A panel a task, a point a method, regular decoding as a line, with the 95% intervals of the accuracy."""
    _, axes = panels(len(tasks), 1)
    for (task, points), (panel,) in zip(tasks.items(), axes, strict=True):
        for point in points:
            _method(panel, point)
        _finish(panel, task)
    save(path)


def plot_sweep(path: Path, tasks: dict[str, list[Point]]) -> None:
    """A row a task: accuracy against tokens per step, regular decoding as a line; acceptance against threshold."""
    _, axes = panels(len(tasks), 2)
    for (task, points), (left, right) in zip(tasks.items(), axes, strict=True):
        for point in points:
            if point.threshold is None:
                _method(left, point)
        swept = [point for point in points if point.threshold is not None]
        _accuracy(left, swept, PIPO_COLOUR, "pipo")
        for point in swept:
            if point.figures["tokens_per_step"] is not None:
                where = (point.figures["tokens_per_step"], point.figures["avg_at_k"])
                left.annotate(point.label, where, xytext=(5, 5), textcoords="offset points", fontsize=8)
        _finish(left, task)
        _acceptance(right, swept)
    save(path)


def panels(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure with its axes [rows, columns], drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _method(panel: Any, point: Point) -> None:
    if point.label == "regular":
        _level(panel, point)
    else:
        _accuracy(panel, [point], COLOURS.get(point.label, PIPO_COLOUR), point.label)


def _accuracy(panel: Any, points: Sequence[Point], colour: str, label: str) -> None:
    drawn = [point.figures for point in points if point.figures["tokens_per_step"] is not None]
    if not drawn:
        return
    centre = [figures["avg_at_k"] for figures in drawn]
    low = [max(0, f["avg_at_k"] - f["avg_at_k_ci95"][0]) for f in drawn]
    high = [max(0, f["avg_at_k_ci95"][1] - f["avg_at_k"]) for f in drawn]
    across = [figures["tokens_per_step"] for figures in drawn]
    panel.errorbar(across, centre, yerr=[low, high], fmt="o", color=colour, capsize=3, label=label)


def _level(panel: Any, point: Point) -> None:
    panel.axhline(point.figures["avg_at_k"], color=REGULAR_COLOUR, linewidth=1, label=point.label)
    panel.axhspan(*point.figures["avg_at_k_ci95"], color=REGULAR_COLOUR, alpha=0.15, linewidth=0)


def _finish(panel: Any, title: str) -> None:
    panel.set(title=title, xlabel="tokens per step", ylabel="accuracy (avg@k, 95% CI)")
    panel.set_xlim(left=min(0.95, panel.get_xlim()[0]), right=max(2.05, panel.get_xlim()[1]))
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()


def _acceptance(panel: Any, points: Sequence[Point]) -> None:
    drawn = [point for point in points if point.figures["acceptance_rate"] is not None]
    across, up = [p.threshold for p in drawn], [p.figures["acceptance_rate"] for p in drawn]
    panel.plot(across, up, "o-", color=PIPO_COLOUR)
    panel.set(title="accepted share of the drafts", xlabel="confidence threshold", ylabel="acceptance rate")
    panel.set_ylim(0, 1.02)
    panel.grid(alpha=0.3)


def save(path: Path) -> None:
    """Write the open figure as PNG, whole or not at all, and close it."""
    from matplotlib import pyplot

    partial = path.with_name(f".{path.name}.partial")
    pyplot.savefig(partial, dpi=150, format="png")
    pyplot.close()
    partial.replace(path)
