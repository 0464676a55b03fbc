"""Which threshold, by what rule, and storing it in a model's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from pipo.convert.card import state_threshold
from pipo.errors import UsageError
from pipo.runtime.provenance import write_json

GENERATION = "generation_config.json"

Figures = dict[str, Any]

RULE = (
    "the most tokens per step among the thresholds whose score, on the same questions, is at most {margin:g} below "
    "that of the threshold with the best score"
)


def mark_frontier(points: Sequence[Figures]) -> None:
    """Set `pareto`: no other point has as good a score at as many tokens per step, and more of one of them."""
    places = [(point["score"], point["tokens_per_step"] or 0.0) for point in points]
    for point, (score, speed) in zip(points, places, strict=True):
        point["pareto"] = not any(a >= score and b >= speed and (a, b) != (score, speed) for a, b in places)


def top(points: Sequence[Figures]) -> Figures:
    """The point with the best score; of several, the fastest."""
    return max(points, key=lambda point: (point["score"], point["tokens_per_step"] or 0.0))


def choose(points: Sequence[Figures], margin: float) -> Figures:
    """By RULE, of points that have `difference_to_top`."""
    allowed = [point for point in points if point["difference_to_top"] >= -margin]
    return max(allowed, key=lambda point: (point["tokens_per_step"] or 0.0, point["score"]))


def store(folder: Path, threshold: float) -> None:
    """Write the threshold into generation_config.json, whole or not at all, and into the model card."""
    path = folder / GENERATION
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else GenerationConfig().to_diff_dict()
        config.pop("_from_model_config", None)  # with it, transformers does not read fields of others' making
        write_json(path, config | {"confidence_threshold": threshold})
        state_threshold(folder, threshold)
    except (OSError, ValueError) as error:
        raise UsageError("--store", f"cannot write {path} ({error})", "store it in a folder of your own") from None
