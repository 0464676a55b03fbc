"""Batches of similar length that still mix the data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

BLOCK = 4
"""Batches that are sorted together. Few, so that conversations of one kind (one length) do not come in long runs."""


class LengthBlockSampler(Sampler[int]):
    """A shuffle of the data in which each block of BLOCK batches is sorted by length, its batches shuffled again."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        order = rng.sample(range(len(self.lengths)), len(self.lengths))
        size = BLOCK * self.batch_size
        full = len(order) - len(order) % self.batch_size
        for start in range(0, full, size):
            block = sorted(order[start : min(start + size, full)], key=lambda i: self.lengths[i])
            batches = [block[i : i + self.batch_size] for i in range(0, len(block), self.batch_size)]
            rng.shuffle(batches)
            for batch in batches:
                yield from batch
        yield from order[full:]
