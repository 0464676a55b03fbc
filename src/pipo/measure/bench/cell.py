"""One line of the table, what it is measured on, and what is measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass
class Trial:
    """One measured decode of a batch."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_second: float
    tokens: int
    steps: int
    drafted: int = 0
    accepted: int = 0
    kv_bytes: int = 0


@dataclass
class Cell:
    """One line of the table: a method at a prompt length and a concurrency."""

    method: str
    prompt_length: int
    concurrency: int
    trials: list[Trial] = field(default_factory=list)

    def row(self, new_tokens: int) -> dict[str, Any]:
        def median(name: str) -> float:
            return statistics.median(getattr(trial, name) for trial in self.trials)

        last = self.trials[-1]
        return {
            "method": self.method,
            "prompt_length": self.prompt_length,
            "new_tokens": new_tokens,
            "concurrency": self.concurrency,
            "acceptance_rate": last.accepted / last.drafted if last.drafted else None,
            "tokens_per_step": last.tokens / last.steps,
            "ttft_ms": median("ttft_ms"),
            "tpot_ms": median("tpot_ms"),
            "tokens_per_second": median("tokens_per_second"),
            "kv_bytes_per_token": last.kv_bytes / (self.concurrency * self.prompt_length + last.tokens),
        }


class Bed(Protocol):
    """The models of a run, loaded, in one engine."""

    dtype: str
    methods: Sequence[str]

    def measure(self, cell: Cell, trial: int) -> Trial:
        """Decode once."""

    def limit(self, regular: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
        """What the bytes that a step reads allow, from regular's row and another method's, where this can be said."""

    def close(self) -> None:
        """Give back what was taken."""


def random_prompts(cell: Cell, seed: int, vocabulary: int, pad: int) -> list[list[int]]:
    """Of a trial: the same for every method. PAD is not in them."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(vocabulary, (cell.concurrency, cell.prompt_length), generator=draw)
    prompts[prompts == pad] = (pad + 1) % vocabulary
    ids: list[list[int]] = prompts.tolist()
    return ids
