"""The loss curves of training runs as a CSV and a picture.

usage: python runs/curves.py RUN... --output NAME
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

LOSSES = ("token_loss", "backbone_loss", "mtp_loss", "confidence_loss", "confidence_mean", "confidence_target_mean")


def history(run: Path) -> list[dict[str, Any]]:
    """What the run's last checkpoint logged."""
    last = max(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    log: list[dict[str, Any]] = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    logs = {run.name: history(run) for run in args.runs}
    with open(f"{args.output}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "step", *LOSSES])
        for name, log in logs.items():
            writer.writerows([name, entry["step"], *(entry.get(loss, "") for loss in LOSSES)] for entry in log)
    draw(logs, f"{args.output}.png")


def draw(logs: dict[str, list[dict[str, Any]]], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, log in logs.items():
        for loss in LOSSES[:3]:
            points = [(entry["step"], entry[loss]) for entry in log if loss in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{name}: {loss.replace('_', ' ')}")
    axes.set(xlabel="optimizer step", ylabel="nats per target", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
