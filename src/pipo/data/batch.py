"""Batches: right-padded, by whole pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipo.pairing import IGNORE


@dataclass(frozen=True)
class Collator:
    """Pads a batch at its end: `pad` in the ids, IGNORE in the labels, 0 in the mask and in the drafts' noise.

    Lengths are multiples of `multiple`, an even number: few different ones spare compilers and kernel caches work.
    """

    pad: int
    multiple: int = 2

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        longest += -longest % self.multiple

        def stack(key: str, fill: int, width: int) -> Tensor:
            return torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch = {
            "input_ids": stack("input_ids", self.pad, longest),
            "labels": stack("labels", IGNORE, longest),
            "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long(),
        }
        if "draft_noise" in rows[0]:  # one a pair, but for the first
            batch["draft_noise"] = stack("draft_noise", 0, longest // 2 - 1)
        return batch
