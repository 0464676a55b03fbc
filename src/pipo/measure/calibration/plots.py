"""The plots of a calibration, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.measure.evals.plots import PIPO_COLOUR, REGULAR_COLOUR, panels, save

Figures = dict[str, Any]
TOP_COLOUR = "#d98b2b"
STYLES = {
    "confidence": {"fmt": "o-", "color": PIPO_COLOUR, "label": "by confidence"},
    "random": {"fmt": "s--", "color": REGULAR_COLOUR, "label": "at random, same rates"},
}
SCORES = {"avg_at_k": "accuracy (avg@k, 95% CI)", "teacher_logprob": "teacher's log-likelihood a token (95% CI)"}


def plot_pareto(path: Path, points: Sequence[Figures], score: str, regular: Figures) -> None:
    """The score against tokens per step and against the acceptance rate, both curves; the base as a line."""
    _, [[left, right]] = panels(1, 2)
    for panel, across, title in (
        (left, "tokens_per_step", "tokens per step"),
        (right, "acceptance_rate", "acceptance rate"),
    ):
        for kind, style in STYLES.items():
            drawn = [point for point in points if point["rejection"] == kind and point[across] is not None]
            if drawn:
                _curve(panel, drawn, across, "score", **style)
        panel.axhline(regular["score"], color=TOP_COLOUR, label="uncompressed")
        panel.axhspan(*regular["score_ci95"], color=TOP_COLOUR, alpha=0.15)
        panel.set(title="what rejection costs and gives", xlabel=title, ylabel=SCORES[score])
        _finish(panel)
    for point in points:
        if point["rejection"] == "confidence" and point["tokens_per_step"] is not None:
            where = (point["tokens_per_step"], point["score"])
            left.annotate(f"τ = {point['threshold']:g}", where, xytext=(5, 5), textcoords="offset points", fontsize=8)
    save(path)


def plot_reliability(path: Path, points: Sequence[Figures], found: Figures | None) -> None:
    """The confidence against what the teacher says of the drafts; how right the kept ones are, both curves."""
    _, [[left, right]] = panels(1, 2)
    left.plot([0, 1], [0, 1], color=REGULAR_COLOUR, linewidth=1)
    if found is not None:
        _reliability(left, found)
    left.set(title="reliability", xlabel="confidence", ylabel="of the drafts", xlim=(0, 1), ylim=(0, 1.02))
    for kind, style in STYLES.items():
        drawn = [point for point in points if point["rejection"] == kind and point["kept_agreement"] is not None]
        if drawn:
            _curve(right, drawn, "acceptance_rate", "kept_agreement", **style)
    right.set(
        title="how right the kept drafts are",
        xlabel="acceptance rate",
        ylabel="their agreement min(1, p_t / p_s)",
    )
    for panel in (left, right):
        _finish(panel)
    save(path)


def _finish(panel: Any) -> None:
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()


def _reliability(panel: Any, found: Figures) -> None:
    bins = found["bins"]
    across = [part["confidence"] for part in bins]
    for name, colour, label in (
        ("agreement", PIPO_COLOUR, f"agreement, ECE {found['ece']:.3f}"),
        ("top1", TOP_COLOUR, f"teacher's likeliest token, ECE {found['ece_top1']:.3f}"),
    ):
        panel.plot(across, [part[name] for part in bins], "o-", color=colour, label=label)
    shares = [part["drafts"] / found["drafts"] for part in bins]
    lows, widths = [part["low"] for part in bins], [part["high"] - part["low"] for part in bins]
    panel.bar(lows, shares, widths, align="edge", color=REGULAR_COLOUR, alpha=0.25, label="share of the drafts")


def _curve(panel: Any, points: Sequence[Figures], across: str, up: str, **style: Any) -> None:
    intervals = [point.get(f"{up}_ci95") for point in points]
    bars = [[abs(p[up] - p[f"{up}_ci95"][side]) for p in points] for side in (0, 1)] if all(intervals) else None
    panel.errorbar([p[across] for p in points], [p[up] for p in points], yerr=bars, capsize=3, linewidth=1, **style)
