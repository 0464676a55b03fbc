"""report.md with its plot: what a run measured, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.measure.evals.metrics import Line
from pipo.measure.evals.plots import Point, plot_methods, plot_sweep
from pipo.model import mtp_base
from pipo.runtime.provenance import write_text

PLOT = "accuracy.png"
LISTED = 50  # failed samples that the report names; samples.jsonl has all

COLUMNS = {
    "avg@k": ("avg_at_k", ".1%"),
    "95% CI": ("avg_at_k_ci95", ".1%"),
    "pass@k": ("pass_at_k", ".1%"),
    "of pass@k": ("pass_at_k_ci95", ".1%"),
    "tokens": ("completion_tokens_mean", ".1f"),
    "steps": ("steps_mean", ".1f"),
    "tokens/step": ("tokens_per_step", ".3f"),
    "acceptance": ("acceptance_rate", ".1%"),
    "truncated": ("truncated", ".1%"),
    "repetition": ("repetition", ".1%"),
    "TTFT ms": ("ttft_ms", ".1f"),
    "TPOT ms": ("tpot_ms", ".2f"),
}
"""Heading -> key of a method's figures, number format."""

NOTES = (
    "avg@k is the mean over questions of the share of correct samples; pass@k the unbiased estimate that one of k "
    "samples is correct. Their 95% intervals are bootstraps over questions. Tokens and steps are means of a sample, "
    "tokens/step and acceptance ratios of sums. Truncated samples met the budget; repetition is the share that ends in "
    "a loop. Times are of single requests: TTFT a median, TPOT the loops' time over the tokens that they emitted."
)


def write_report(folder: Path, summary: dict[str, Any], lines: Sequence[Line]) -> None:
    """Write report.md and its plot for a summary and its samples."""
    threshold = summary["provenance"]["threshold"]
    tasks = {
        task: [_point(name, figures, threshold) for name, figures in methods.items()]
        for task, methods in summary["tasks"].items()
    }
    swept = summary["provenance"]["thresholds"]
    (plot_sweep if swept else plot_methods)(folder / PLOT, tasks)
    title = f"# Evaluation of {summary['provenance']['model']}"
    sections = [section(task, points) for task, points in tasks.items()]
    plot = f"![accuracy against tokens per step]({PLOT})"
    parts = [title, facts(summary), *sections, plot, failures(lines), NOTES]
    write_text(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")


def _point(method: str, figures: dict[str, Any], threshold: float | None) -> Point:
    if method == "pipo":
        return Point(f"pipo (τ = {threshold:g})", figures, threshold)
    name, _, swept = method.partition("@")
    if name == "pipo":
        return Point(method, figures, float(swept))
    return Point(method, figures)


def facts(summary: dict[str, Any], base: str | None = None) -> str:
    """What was run, on what, as a list; `base` says what the base was for, where it was no method."""
    origin = summary["provenance"]
    draws = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in summary["sampling"].items())
    rows = {
        "model": origin["model"],
        "base": base_line(origin) if base is None else base,
        "confidence threshold τ": "" if origin["threshold"] is None else f"{origin['threshold']:g}",
        "questions": ", ".join(f"{task} {text}" for task, text in origin["questions"].items()),
        "wordings": "held out from training" if origin["held_out"] else "",
        "thinking": {None: "", True: "on", False: "off"}[origin.get("thinking")],
        "budget": summary["budget"],
        "sampling": "greedy" if summary["sampling"]["temperature"] == 0 else draws,
        "seed": summary["seed"],
        "precision": f"{origin['dtype']} on {origin['device']}",
        "hardware": _hardware(origin["hardware"]),
        "versions": ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if version),
        "revision": origin["git_revision"] or "",
        "date": origin["date"],
        "command": f"`{origin['command']}`",
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items() if value != "")


def base_line(origin: dict[str, Any]) -> str:
    """The base of the uncompressed methods, in words."""
    if origin["base"] is None:
        return "none, `pipo` alone was run"
    found = [f"`{method}`" for method in mtp_base.METHODS if method in origin.get("methods", ())]
    heads = f"; {' and '.join(found)} decode{'s' if len(found) == 1 else ''} it with its MTP head" if found else ""
    if origin["threshold"] is None and origin["base"] == origin["model"]:
        return f"the model itself, which is uncompressed{heads}"
    return f"`regular` is {origin['base']}{heads}"


def _hardware(found: dict[str, Any]) -> str:
    cores, memory = f"{found['cores']} cores", f"{found['memory_gib']} GiB"
    return ", ".join(text for text in (found["gpu"], found["cpu"], cores, memory) if text)


def section(task: str, points: Sequence[Point]) -> str:
    """A task's table, and one of its parts where it is a mixture."""
    first = points[0].figures
    passes = f"; pass@k at k = {first['pass_k']}" if first.get("pass_k", first["samples"]) != first["samples"] else ""
    head = f"## {task}\n\n{first['n_questions']} questions, {first['samples']} samples each{passes}."
    rows = [[point.label, *(cell(point.figures.get(key), form) for key, form in COLUMNS.values())] for point in points]
    tables = [head, table(["method", *COLUMNS], rows)]
    if len(points[0].figures.get("buckets", ())) > 1:
        tables.append(buckets_table(points))
    if "parts" in points[0].figures:
        tables.append(parts_table(points))
    if any("difference_to_regular" in point.figures for point in points):
        tables.append(differences_table(points))
    return "\n\n".join(tables)


def buckets_table(points: Sequence[Point]) -> str:
    """avg@k / pass@k had decoding stopped at smaller budgets, a row a method."""
    sizes = points[0].figures["buckets"]
    rows = []
    for point in points:
        found = [point.figures["buckets"][size] for size in sizes]
        rows.append([point.label, *(f"{one['avg_at_k']:.1%} / {one['pass_at_k']:.1%}" for one in found)])
    return table(["avg@k / pass@k within", *sizes], rows)


def parts_table(points: Sequence[Point]) -> str:
    """avg@k of every part of a mixture, a column a method."""
    parts = points[0].figures["parts"]
    rows = []
    for part in parts:
        scores = [point.figures["parts"][part] for point in points]
        cells = [f"{score['avg_at_k']:.1%} ({cell(score['avg_at_k_ci95'], '.1%')})" for score in scores]
        rows.append([part, str(parts[part]["n_questions"]), *cells])
    return table(["part", "questions", *(point.label for point in points)], rows)


def differences_table(points: Sequence[Point]) -> str:
    """Every method less regular decoding, on the same questions."""
    rows = []
    for point in points:
        if "difference_to_regular" in point.figures:
            cells = [cell(point.figures[f"difference_to_regular{end}"], "+.1%") for end in ("", "_ci95")]
            rows.append([point.label, *cells])
    return table(["less regular", "avg@k", "95% CI, paired by question"], rows)


def failures(lines: Sequence[Line]) -> str:
    """The samples that raised, which count as wrong."""
    failed = [line for line in lines if "error" in line]
    if not failed:
        return ""
    named = [
        f"- {line['task']} {line['question_id']} {line['method']} sample {line['sample_index']}: "
        + " ".join(line["error"].split())
        for line in failed[:LISTED]
    ]
    more = [f"- and {len(failed) - LISTED} more, see samples.jsonl"] if len(failed) > LISTED else []
    return "\n".join([f"## Failed samples\n\n{len(failed)}, counted as wrong:\n", *named, *more])


def cell(value: Any, form: str) -> str:
    """A number, or a [low, high] pair, as text; a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(format(number, form) for number in value)
    return format(value, form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
