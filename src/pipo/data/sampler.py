"""Orders of the data that the seed and the epoch decide, the same for any number of ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from pipo.pairing import IGNORE

BLOCK = 4
"""Batches that are sorted together. Few, so that conversations of one kind (one length) do not come in long runs."""

FILLER = -1
"""Index of a row without targets, see `EvenSampler`."""


class ShuffleSampler(Sampler[int]):
    """A shuffle of the data, another one every epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def rng(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.epoch}")

    def __iter__(self) -> Iterator[int]:
        yield from self.rng().sample(range(self.size), self.size)


class LengthBlockSampler(ShuffleSampler):
    """Batches of similar length that still mix the data.

    Each block of BLOCK batches of the shuffle is sorted by length, its batches are shuffled again.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(len(lengths), seed)
        self.lengths, self.batch_size = lengths, batch_size

    def __iter__(self) -> Iterator[int]:
        rng = self.rng()
        order = rng.sample(range(self.size), self.size)
        size = BLOCK * self.batch_size
        full = len(order) - len(order) % self.batch_size
        for start in range(0, full, size):
            block = sorted(order[start : min(start + size, full)], key=lambda i: self.lengths[i])
            batches = [block[i : i + self.batch_size] for i in range(0, len(block), self.batch_size)]
            rng.shuffle(batches)
            for batch in batches:
                yield from batch
        yield from order[full:]


class EvenSampler(Sampler[int]):
    """An order with FILLERs behind it, up to a whole batch on every rank.

    Ranks step together. Where the data does not go round, accelerate would read its start twice.
    """

    def __init__(self, order: Any, multiple: int) -> None:  # order: a sized sampler
        self.order, self.fillers = order, -len(order) % multiple

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order) + self.fillers

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [FILLER] * self.fillers


class Filled(Dataset[dict[str, list[int]]]):
    """Rows of ids and labels, and at FILLER two pairs without a target."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    @property
    def lengths(self) -> Any:
        return self.rows.lengths

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if index != FILLER:
            row: dict[str, list[int]] = self.rows[index]
            return row
        first = self.rows[0]
        more = {"draft_noise": first["draft_noise"][:1]} if "draft_noise" in first else {}
        return {"input_ids": first["input_ids"][:4], "labels": [IGNORE] * 4, **more}
