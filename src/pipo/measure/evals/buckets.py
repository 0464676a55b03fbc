"""Accuracy at smaller budgets from one run: an answer, cut where decoding would have stopped, is scored again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipo.decoding.engine import Completion
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.metrics import Line, accuracy

SIZES = tuple(2**power for power in range(11, 16))
"""2K to 32K, in the unit of the run's budget."""
KEYS = ("avg_at_k", "avg_at_k_ci95", "pass_at_k")


def smaller(budget: Budget) -> list[int]:
    """The sizes below the budget."""
    return [size for size in SIZES if size < budget.size]


def correct_at(
    completion: Completion, budget: Budget, decode: Callable[[Sequence[int]], str], correct: Callable[[str], bool]
) -> dict[str, bool]:
    """Smaller size -> whether the answer had been right; sizes that the answer fits in are left out."""
    found = {}
    for size in smaller(budget):
        ids = completion.token_ids[:size]
        if budget.kind == "slots":
            ids = [token for slot in completion.slots[:size] for token in slot.tokens]
        if len(ids) < len(completion.token_ids):
            found[str(size)] = correct(decode(ids))
    return found


def buckets(lines: Sequence[Line], budget: Budget) -> dict[str, dict[str, Any]]:
    """Size -> avg@k and pass@k had decoding stopped there, the budget itself last."""
    found = {}
    for size in [*map(str, smaller(budget)), str(budget.size)]:
        cut = [line | {"correct": line.get("correct_at", {}).get(size, line["correct"])} for line in lines]
        figures = accuracy(cut)
        found[size] = {key: figures[key] for key in KEYS}
    return found
