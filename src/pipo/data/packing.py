"""Packed batches: the examples end to end in one row, instead of one padded row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipo.pairing import IGNORE


@dataclass(frozen=True)
class Packer:
    """A collator. `position_ids` start anew with every example, and say so where one ends.

    The first `unpredicted` labels of an example (its first pair, or the first token of a regular model) are no targets:
    nothing of the same example predicts them. The row is filled with `pad` to a multiple of `multiple`.
    """

    pad: int
    multiple: int = 2
    unpredicted: int = 2

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        noise: list[float] = []  # of each pair's draft; none is judged in an example's first pair
        for row in rows:
            ids += row["input_ids"]
            labels += [IGNORE] * self.unpredicted + row["labels"][self.unpredicted :]
            positions += range(len(row["input_ids"]))
            noise += [0.0, *row.get("draft_noise", [])]
        fill = -len(ids) % self.multiple
        ids += [self.pad] * fill
        labels += [IGNORE] * fill
        positions += range(fill)
        columns = {"input_ids": ids, "labels": labels, "position_ids": positions}
        batch = {name: torch.tensor([values]) for name, values in columns.items()}
        if "draft_noise" in rows[0]:
            batch["draft_noise"] = torch.tensor([noise[1:] + [0.0] * (fill // 2)])
        return batch
