"""report.md of a calibration, with its plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.measure.calibration.plots import plot_pareto, plot_reliability
from pipo.measure.evals.metrics import Line
from pipo.measure.evals.report import cell, facts, failures, table
from pipo.runtime.provenance import write_text

PARETO, RELIABILITY = "pareto.png", "reliability.png"
FORMS = {"avg_at_k": ".1%", "teacher_logprob": ".3f"}
HEADINGS = {"avg_at_k": "avg@k", "teacher_logprob": "log-likelihood"}

COLUMNS = {
    "tokens/step": ("tokens_per_step", ".3f"),
    "tokens/step CI": ("tokens_per_step_ci95", ".3f"),
    "acceptance": ("acceptance_rate", ".1%"),
    "acceptance CI": ("acceptance_rate_ci95", ".1%"),
    "kept: agreement": ("kept_agreement", ".3f"),
    "kept: top-1": ("kept_top1", ".3f"),
    "ECE": ("ece", ".3f"),
    "teacher's log-likelihood": ("teacher_logprob", ".3f"),
    "tokens": ("completion_tokens_mean", ".1f"),
    "truncated": ("truncated", ".1%"),
    "repetition": ("repetition", ".1%"),
}
"""Heading -> key of a point's figures, number format."""

NOTES = (
    "A draft's agreement is min(1, p_t / p_s), what speculative sampling would accept it with: p_t is the "
    "uncompressed base's probability of the drafted token after the same text, p_s the draft head's, both at "
    "temperature 1. Kept drafts are described by its mean, and by the share that is the base's likeliest token. ECE is "
    "the mean over drafts, rejected ones included, of the gap between mean confidence and mean agreement in 15 "
    "equal parts of [0, 1]. The log-likelihood is the base's, of the answers, in nats a token. Random points keep "
    "every draft by a coin of the rate that the confidence had at that threshold. Intervals are bootstraps over "
    "questions; differences are paired by question. * marks the thresholds that no other one beats in both score and "
    "tokens per step."
)


def write_report(folder: Path, summary: dict[str, Any], lines: Sequence[Line]) -> None:
    """Write report.md and its plots."""
    points, score = summary["points"], summary["score"]
    plot_pareto(folder / PARETO, points, score, summary["regular"])
    plot_reliability(folder / RELIABILITY, points, summary["reliability"])
    parts = [
        f"# Calibration of {summary['model']}",
        facts(summary, f"{summary['base']}, the teacher that the drafts are compared with"),
        f"## {summary['task']}\n\n{points[0]['n_questions']} questions, {points[0]['samples']} samples each.",
        _points(summary["regular"], points, score),
        f"![score against tokens per step and acceptance]({PARETO})",
        _choice(summary),
        _control(points, score),
        _reliability(summary["reliability"]),
        f"![reliability of the confidence]({RELIABILITY})",
        failures(lines),
        NOTES,
    ]
    write_text(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")


def _points(regular: dict[str, Any], points: Sequence[dict[str, Any]], score: str) -> str:
    """The uncompressed base first."""
    form, rows = FORMS[score], []
    for point in (regular, *points):
        name = "uncompressed" if point is regular else f"{point['rejection']}, τ = {point['threshold']:g}"
        less = [cell(point.get(f"difference_to_regular{end}"), "+" + form) for end in ("", "_ci95")]
        figures = (cell(point[key], kind) for key, kind in COLUMNS.values())
        score_cells = [cell(point["score"], form), cell(point["score_ci95"], form)]
        rows.append([name + (" *" if point.get("pareto") else ""), *score_cells, *less, *figures])
    return table(["rejection", HEADINGS[score], "95% CI", "less the base's", "95% CI", *COLUMNS], rows)


def _choice(summary: dict[str, Any]) -> str:
    choice, form = summary["choice"], "+" + FORMS[summary["score"]]
    point = next(p for p in summary["points"] if p["threshold"] == choice["threshold"] and "difference_to_top" in p)
    differs = f"{cell(point['difference_to_top'], form)} ({cell(point['difference_to_top_ci95'], form)})"
    stored = "Nothing was stored." if summary["stored"] is None else f"Stored in the model: τ = {summary['stored']:g}."
    return (
        f"Chosen by rule: τ = {choice['threshold']:g}. The rule: {choice['rule']}. "
        f"Its difference to the best score: {differs}. {stored}"
    )


def _control(points: Sequence[dict[str, Any]], score: str) -> str:
    """By confidence and at random, at the same rate."""
    random = {point["threshold"]: point for point in points if point["rejection"] == "random"}
    form, rows = "+" + FORMS[score], []
    for point in points:
        if point["rejection"] == "confidence" and point["threshold"] in random:
            other = random[point["threshold"]]
            rates = [cell(p["acceptance_rate"], ".1%") for p in (point, other)]
            gain = [cell(point[f"difference_to_random{end}"], form) for end in ("", "_ci95")]
            kept = [cell(p["kept_agreement"], ".3f") for p in (point, other)]
            rows.append([f"τ = {point['threshold']:g}", *rates, *gain, *kept])
    if not rows:
        return ""
    head = ["confidence against random", "acceptance", "of random", f"{HEADINGS[score]} gained", "95% CI"]
    return table([*head, "kept: agreement", "of random"], rows)


def _reliability(found: dict[str, Any] | None) -> str:
    if found is None:
        return "No draft was compared with a threshold, so there is nothing to say of the confidence."
    rows = [
        [
            f"{part['low']:.2f} to {part['high']:.2f}",
            str(part["drafts"]),
            *(f"{part[key]:.3f}" for key in ("confidence", "agreement", "top1")),
        ]
        for part in found["bins"]
    ]
    head = (
        f"## Reliability\n\n{found['drafts']} drafts of all thresholds: "
        f"mean confidence {found['mean_confidence']:.3f}, mean agreement {found['mean_agreement']:.3f}, "
        f"ECE {found['ece']:.3f} (against the base's likeliest "
        f"token: {found['ece_top1']:.3f})."
    )
    return head + "\n\n" + table(["confidence", "drafts", "mean", "agreement", "top-1"], rows)
