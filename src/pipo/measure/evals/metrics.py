"""Figures from lines of samples.jsonl. Accuracies and rates are fractions, times milliseconds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import groupby
from math import comb
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipo.errors import UsageError
from pipo.tasks.repetition import repeats

Line = dict[str, Any]
Array = NDArray[np.float64]
RESAMPLES = 10_000
CHUNK = 1_000  # resamples in memory at once


def summarise(lines: Sequence[Line], k: int | None = None) -> dict[str, Any]:
    """The summary of one method on one task; `parts` is there for mixtures. `k` of pass@k: None is all samples."""
    summary = {**accuracy(lines, k), **decoding(lines), **timing(lines)}
    parts = sorted({line["part"] for line in lines if line["part"] is not None})
    if parts:
        chosen = {part: accuracy([line for line in lines if line["part"] == part]) for part in parts}
        summary["parts"] = {part: {key: figures[key] for key in PART_KEYS} for part, figures in chosen.items()}
    return summary


PART_KEYS = ("avg_at_k", "avg_at_k_ci95", "n_questions")


def accuracy(lines: Sequence[Line], k: int | None = None) -> dict[str, Any]:
    """avg@k over all samples of a question and pass@k, with their intervals over questions."""
    counts = per_question(lines)
    means = [correct / total for correct, total in counts]
    passes = [pass_at_k(total, correct, k or total) for correct, total in counts]
    return {
        "n_questions": len(counts),
        "samples": max(total for _, total in counts),
        "avg_at_k": float(np.mean(means)),
        "avg_at_k_ci95": bootstrap_ci95(means),
        "pass_at_k": float(np.mean(passes)),
        "pass_at_k_ci95": bootstrap_ci95(passes),
        "pass_k": k or max(total for _, total in counts),
        "failed": sum("error" in line for line in lines),
    }


def per_question(lines: Sequence[Line]) -> list[tuple[int, int]]:
    """(correct, samples) of every question, in the order of their ids."""
    ordered = sorted(lines, key=lambda line: line["question_id"])
    groups = [list(group) for _, group in groupby(ordered, key=lambda line: line["question_id"])]
    return [(sum(line["correct"] for line in group), len(group)) for group in groups]


def question_means(lines: Sequence[Line], field: str = "correct") -> list[float]:
    """The mean of a field over the samples of every question, in the order of their ids."""
    ordered = sorted(lines, key=lambda line: line["question_id"])
    groups = groupby(ordered, key=lambda line: line["question_id"])
    return [float(np.mean([line[field] for line in group])) for _, group in groups]


def paired_difference(
    lines: Sequence[Line], others: Sequence[Line], field: str = "correct"
) -> tuple[float, list[float]]:
    """The mean of `lines` minus that of `others` on the same questions (avg@k), and its interval over questions."""
    pairs = zip(question_means(lines, field), question_means(others, field), strict=True)
    differences = [mine - other for mine, other in pairs]
    return float(np.mean(differences)), bootstrap_ci95(differences)


def difference_to(
    name: str, lines: Sequence[Line], others: Sequence[Line], field: str = "correct"
) -> dict[str, float | list[float]]:
    """`paired_difference` under the names that it has in a summary: difference_to_NAME, difference_to_NAME_ci95."""
    difference, interval = paired_difference(lines, others, field)
    return {f"difference_to_{name}": difference, f"difference_to_{name}_ci95": interval}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate, from n samples, that at least one of k is correct. Raises `UsageError` where k > n."""
    if k > n:
        raise UsageError(
            "pass@k", f"k = {k} is more than the {n} samples of a question", "lower k or take more samples"
        )
    return 1.0 - comb(n - correct, k) / comb(n, k)


def bootstrap_ci95(values: Sequence[float], seed: int = 0) -> list[float]:
    """[low, high] of the mean: percentiles over seeded resamples of the values (one a question)."""
    interval = bootstrap_ratio_ci95(values, [1.0] * len(values), seed)
    assert interval is not None
    return interval


def bootstrap_ratio_ci95(above: Sequence[float], below: Sequence[float], seed: int = 0) -> list[float] | None:
    """[low, high] of sum(above) / sum(below), as `bootstrap_ci95`; None where a resample's divisor is 0."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    if len(above) == 1:  # nothing to draw from: the interval is the value
        return None if not below[0] else [above[0] / below[0]] * 2

    def share(up: Array, down: Array, axis: int) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(up.sum(axis=axis) / down.sum(axis=axis))

    options = {"n_resamples": RESAMPLES, "batch": CHUNK, "method": "percentile", "paired": True, "rng": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of divisors that are 0, see below
        found = bootstrap((above, below), share, vectorized=True, **options)
    if not np.isfinite(found.bootstrap_distribution).all():
        return None
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def decoding(lines: Sequence[Line]) -> dict[str, Any]:
    """Lengths, tokens per step and acceptance: ratios of sums, None where the divisor is 0."""
    tokens, steps, drafted, accepted = (
        sum(line[key] for line in lines) for key in ("completion_tokens", "steps", "drafted", "accepted")
    )
    return {
        "completion_tokens_mean": tokens / len(lines),
        "steps_mean": steps / len(lines),
        "tokens_per_step": ratio(tokens, steps),
        "acceptance_rate": ratio(accepted, drafted),
        "truncated": sum(line["finish_reason"] == "length" for line in lines) / len(lines),
        "repetition": sum(repeats(line["text"]) for line in lines) / len(lines),
    }


def timing(lines: Sequence[Line]) -> dict[str, Any]:
    """Median TTFT, and TPOT as the loops' time / the tokens that they emitted; None where nothing was timed."""
    firsts = [line["ttft_ms"] for line in lines if line["ttft_ms"] is not None]
    loops = [(line["tpot_ms"], line["loop_tokens"]) for line in lines if line["tpot_ms"] is not None]
    total = sum(tpot * tokens for tpot, tokens in loops)
    return {
        "ttft_ms": median(firsts) if firsts else None,
        "tpot_ms": ratio(total, sum(tokens for _, tokens in loops)),
    }


def ratio(above: float, below: float) -> float | None:
    """above / below, None for a division by 0."""
    return above / below if below else None
