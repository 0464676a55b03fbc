"""Several runs of one model at different thresholds, merged into one table and plot.

`python -m pipo.evals.sweep DIR... --output NAME` writes NAME.md and NAME.png. The runs must agree in model, questions,
samples, budget, sampling and seed; each uncompressed method may be in one of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.errors import UsageError
from pipo.evals.metrics import Line, paired_difference
from pipo.evals.options import METHODS
from pipo.evals.plots import Point, plot_sweep
from pipo.evals.report import NOTES, cell, facts, section, table
from pipo.evals.sample_log import parse
from pipo.provenance import write_text

UNCOMPRESSED = tuple(method for method in METHODS if method != "pipo")

SHARED = ("tasks", "held_out", "questions", "samples", "budget", "sampling", "seed", "dtype")
"""Fields of run.json that the runs must agree in. Those with `pipo` must be of one model, too."""


def merge(folders: Sequence[Path], output: Path) -> None:
    """Write `output`.md and `output`.png. Raises `UsageError` for folders that cannot be compared."""
    runs = [(read(folder, "run.json"), read(folder, "summary.json")) for folder in folders]
    order = sorted(range(len(runs)), key=lambda i: "pipo" not in runs[i][0]["methods"])  # the first is one of pipo
    folders, runs = [folders[i] for i in order], [runs[i] for i in order]
    for folder, (settings, _) in zip(folders[1:], runs[1:], strict=True):
        _check_same(folders[0], runs[0][0], folder, settings)
    tasks = {task: points(task, [summary for _, summary in runs]) for task in runs[0][1]["tasks"]}
    picture = output.with_name(f"{output.name}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_sweep(picture, tasks)
    lines = [line for folder, (settings, _) in zip(folders, runs, strict=True) for line in samples(folder, settings)]
    sections = [part for task, found in tasks.items() for part in (section(task, found), differences(task, lines))]
    origin = _origin([summary for _, summary in runs])
    plot = f"![accuracy against tokens per step, by threshold]({picture.name})"
    text = "\n\n".join(
        [f"# Thresholds of {origin['provenance']['model']}", facts(origin), *filter(None, sections), plot, NOTES]
    )
    write_text(output.with_name(f"{output.name}.md"), text + "\n")


def points(task: str, summaries: Sequence[dict[str, Any]]) -> list[Point]:
    """The uncompressed methods first, then PIPO by rising threshold. Raises `UsageError` for a point twice there."""
    fixed: dict[str, dict[Any, Point]] = {method: {} for method in UNCOMPRESSED}
    swept: dict[Any, Point] = {}
    for summary in summaries:
        methods, threshold = summary["tasks"][task], summary["provenance"]["threshold"]
        for method in UNCOMPRESSED:
            if method in methods:
                _add(fixed[method], summary["provenance"]["base"], Point(method, methods[method]))
        if "pipo" in methods:
            _add(swept, threshold, Point(f"τ = {threshold:g}", methods["pipo"], threshold))
    bases = sorted({base for found in fixed.values() for base in found})
    if len(bases) > 1:
        raise UsageError("DIR", f"two bases: {', '.join(bases)}", "name runs with one base")
    uncompressed = [point for found in fixed.values() for point in found.values()]
    return [*uncompressed, *(swept[threshold] for threshold in sorted(swept))]


def samples(folder: Path, settings: dict[str, Any]) -> list[Line]:
    """A run's samples; those of `pipo` carry its threshold."""
    path = folder / "samples.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        raise UsageError(
            "DIR", f"{folder} holds no finished run ({path.name})", "run pipo eval with it first"
        ) from None
    return [parse(f"{path}:{i}", line) | {"threshold": settings["threshold"]} for i, line in enumerate(lines, 1)]


def differences(task: str, lines: Sequence[Line]) -> str:
    """A table of every method minus regular on the same questions; empty without a regular run."""
    here = [line for line in lines if line["task"] == task]
    regular = [line for line in here if line["method"] == "regular"]
    others = {method: [line for line in here if line["method"] == method] for method in UNCOMPRESSED[1:]}
    swept = [line for line in here if line["method"] == "pipo"]
    for threshold in sorted({line["threshold"] for line in swept}):
        others[f"τ = {threshold:g}"] = [line for line in swept if line["threshold"] == threshold]
    rows = []
    for label, found in others.items():
        if found and regular:
            mean, interval = paired_difference(found, regular)
            rows.append([label, f"{mean:+.1%}", cell(interval, "+.1%")])
    return table(["minus regular", "avg@k", "95% CI, questions paired"], rows) if rows else ""


def _add(found: dict[Any, Point], name: Any, point: Point) -> None:
    if name in found:
        raise UsageError("DIR", f"two runs measured {point.label} of {name}", "name each run once")
    found[name] = point


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a finished run."""
    try:
        found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError("DIR", f"{folder} holds no finished run ({name})", "run pipo eval with it first") from None
    return found


def _check_same(first: Path, settings: dict[str, Any], second: Path, others: dict[str, Any]) -> None:
    shared = settings["files"].keys() & others["files"].keys()
    swept = all("pipo" in run["methods"] for run in (settings, others))
    for name in (*SHARED, *(["model"] if swept else [])):
        a, b = settings.get(name), others.get(name)
        if a != b:
            raise UsageError("DIR", f"{first} and {second} differ in {name} ({a!r}, {b!r})", "compare like runs only")
    for method in sorted(shared):
        if settings["files"][method] != others["files"][method]:
            problem = f"the model of {method} changed between {first} and {second}"
            raise UsageError("DIR", problem, "run again what is older")


def _origin(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary's facts, with the base of whichever run has one, and no threshold of its own."""
    base = next((s["provenance"]["base"] for s in summaries if s["provenance"]["base"] is not None), None)
    first = summaries[0]
    return first | {"provenance": first["provenance"] | {"base": base, "threshold": None}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipo.evals.sweep", description="merge runs of pipo eval")
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="output folder of a run")
    parser.add_argument("--output", type=Path, required=True, help="where to write: NAME.md and NAME.png")
    args = parser.parse_args(argv)
    try:
        merge(args.folders, args.output)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
