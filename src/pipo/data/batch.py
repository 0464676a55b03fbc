"""Batches: right-padded, by whole pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipo.pairing import IGNORE


@dataclass(frozen=True)
class Collator:
    """Pads a batch at its end: `pad` in the ids, IGNORE in the labels, 0 in the mask.

    Lengths are multiples of `multiple`, an even number: few different ones spare compilers and kernel caches work.
    """

    pad: int
    multiple: int = 2

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        longest += -longest % self.multiple

        def stack(key: str, fill: int) -> Tensor:
            return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": stack("input_ids", self.pad),
            "labels": stack("labels", IGNORE),
            "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long(),
        }
