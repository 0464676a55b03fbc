"""The table of ablation arms that `pipo eval` and `pipo calibrate` have measured, the first arm as the reference.

usage: python runs/arms.py EVAL_FOLDER CALIBRATION_FOLDER ARM...     (an arm is a folder in both)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipo.measure.calibration.reliability import judged
from pipo.measure.evals.metrics import Line, paired_difference
from pipo.measure.evals.report import cell, table
from pipo.measure.evals.sample_log import parse

HEAD = (
    "arm",
    "avg@k",
    "difference",
    "tokens per step",
    "acceptance rate",
    "kept drafts: agreement",
    "all drafts: agreement",
    "ECE",
    "squared error of the confidence",
)


def lines_of(folder: Path) -> list[Line]:
    path = folder / "samples.jsonl"
    return [parse(f"{path}:{i}", line) for i, line in enumerate(path.read_bytes().splitlines(), 1)]


def row(arm: str, first: str, evals: Path, calibrations: Path) -> list[str]:
    summary = json.loads((evals / arm / "summary.json").read_text())
    figures: dict[str, Any] = summary["tasks"]["smollm2_mix"]["pipo"]
    (point,) = json.loads((calibrations / arm / "calibration.json").read_text())["points"]
    difference = "-"
    if arm != first:
        mean, interval = paired_difference(lines_of(evals / arm), lines_of(evals / first))
        difference = f"{mean:+.1%} ({cell(interval, '+.1%')})"
    drafts = judged(lines_of(calibrations / arm))
    error = float(np.square(drafts[:, 0] - drafts[:, 1]).mean())
    return [
        arm,
        f"{figures['avg_at_k']:.1%} ({cell(figures['avg_at_k_ci95'], '.1%')})",
        difference,
        f"{figures['tokens_per_step']:.3f}",
        f"{figures['acceptance_rate']:.1%}",
        f"{point['kept_agreement']:.3f}",
        f"{point['mean_agreement']:.3f}",
        f"{point['ece']:.3f}",
        f"{error:.4f}",
    ]


def main(evals: str, calibrations: str, *arms: str) -> None:
    print(table(HEAD, [row(arm, arms[0], Path(evals), Path(calibrations)) for arm in arms]))


if __name__ == "__main__":
    main(*sys.argv[1:])
