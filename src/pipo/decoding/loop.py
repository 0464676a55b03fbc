"""The decoding loop: read a pair, emit token 1, draft token 2, keep it or put PAD in its place (paper sec. 3.3).

Nothing is rolled back on a rejection. Regular decoding is the same loop without drafts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import MaxLengthCriteria, StoppingCriteriaList

from pipo.decoding.reader import PairReader, TokenReader
from pipo.decoding.sampling import NOTHING, Sampler
from pipo.errors import UsageError
from pipo.pairing import Slot, accept, accepts_none

OnSlot = Callable[[int, Slot], None]

TAIL_AFTER = 0.75
"""Share of a batch that has to have ended before the steps of the others are limited (`Loop.tail`)."""


class Policy(Protocol):
    """Which drafts are kept; `drafts` is whether there are any to make."""

    @property
    def drafts(self) -> bool: ...

    def __call__(self, confidence: Tensor, rows: Sequence[int]) -> Tensor: ...  # [B], their rows -> bool [B]


@dataclass(frozen=True)
class Threshold:
    """Accept a draft where confidence >= threshold."""

    threshold: float

    @property
    def drafts(self) -> bool:
        return not accepts_none(self.threshold)

    def __call__(self, confidence: Tensor, rows: Sequence[int]) -> Tensor:  # [B], their rows -> bool [B]
        return accept(confidence, self.threshold)


@dataclass
class Coin:
    """Accept a seeded share of the drafts, whatever the confidence: for measurements of speed, and as a control.

    With `generators`, one a row, a row's coins do not depend on its batch.
    """

    rate: float
    seed: int = 0
    generators: Sequence[torch.Generator] | None = None
    drafts: bool = True

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, confidence: Tensor, rows: Sequence[int]) -> Tensor:  # [B], their rows -> bool [B]
        if self.generators is None:
            coins = torch.rand(len(rows), generator=self.generator)
        else:
            own = [self.generators[row] for row in rows]
            coins = torch.cat([torch.rand(1, generator=one, device=one.device).cpu() for one in own])
        return (coins < self.rate).to(confidence.device)


@dataclass
class Row:
    """One sequence being decoded. `ids` holds the prompt (as given, left pads included) and the real tokens so far."""

    ids: Tensor  # [1, capacity]
    length: int
    max_steps: int | None = None  # that the model's positions allow after this prompt
    max_length: int | None = None  # that they allow, where steps do not tell
    slots: list[Slot] = field(default_factory=list)
    finish_reason: str | None = None  # "stop" or "length"

    @property
    def history(self) -> Tensor:  # [1, length]
        return self.ids[:, : self.length]

    @property
    def tokens(self) -> list[int]:
        """The real tokens that were generated."""
        return [token for slot in self.slots for token in slot.tokens]

    def append(self, token: int) -> None:
        self.ids[0, self.length] = token
        self.length += 1


@dataclass
class Loop:
    """Decodes a batch. Times are `time.perf_counter()` seconds."""

    reader: PairReader | TokenReader
    sampler: Sampler
    stop: StoppingCriteriaList
    max_length: int
    policy: Policy | None = None  # None: no drafts
    on_slot: OnSlot | None = None
    kv_bytes: int = 0  # of every row when it ended
    tail: float | None = (
        None  # the last rows are cut after this many times the steps that TAIL_AFTER of the batch needed
    )
    first_slot_at: float = 0.0
    finished_at: float = 0.0

    def __post_init__(self) -> None:
        self.stop = StoppingCriteriaList(c for c in self.stop if not isinstance(c, MaxLengthCriteria))

    def run(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> None:
        """Fill `rows`, one for each prompt."""
        live = list(range(len(rows)))
        hidden = self.reader.prefill(prompts)
        limit: float | None = None  # steps
        for step in itertools.count(1):
            last = self._emit(hidden, rows, live)
            self.first_slot_at = self.first_slot_at or time.perf_counter()
            keep = [i for i, row in enumerate(live) if rows[row].finish_reason is None]
            if len(keep) < len(live):
                self.kv_bytes += self.reader.kv_bytes() * (len(live) - len(keep)) // len(live)
            if not keep:
                break
            if self.tail is not None and limit is None and len(keep) <= (1 - TAIL_AFTER) * len(rows):
                limit = self.tail * step
            if limit is not None and step >= limit:
                for i in keep:
                    rows[live[i]].finish_reason = "length"
                break
            if len(keep) < len(live):
                index = torch.tensor(keep, device=hidden.device)
                self.reader.select(index)
                live, last = [live[i] for i in keep], last[index]
            hidden = self.reader.step(last)
        self.finished_at = time.perf_counter()

    def _emit(self, hidden: Tensor, rows: Sequence[Row], live: list[int]) -> Tensor:  # [B, H] -> ids [B, width]
        """One slot for every live row; returns the ids that the next step reads."""
        token1 = self._draw(self.reader.logits(hidden), rows, live)
        first = token1.tolist()
        if NOTHING in first:
            raise UsageError("logits_processor", "rules out every token", "leave at least one")
        for row, token in zip(live, first, strict=True):
            self._take(rows[row], token)
        if not isinstance(self.reader, PairReader):
            return self._close(rows, live, [Slot(token) for token in first], token1[:, None])
        pad = torch.full_like(token1, self.reader.pad)
        if self.policy is None or not self.policy.drafts:
            return self._close(rows, live, [Slot(token) for token in first], torch.stack([token1, pad], dim=1))
        states = self.reader.draft(token1)
        slots = [Slot(token) for token in first]
        open_ = [i for i, row in enumerate(live) if self._drafts(rows[row])]
        if open_:
            index = torch.tensor(open_, device=hidden.device)
            drafts = self._draw(self.reader.draft_logits(states[index]), rows, [live[i] for i in open_])
            confidence = self.reader.confidence(index, states[index], drafts.clamp(min=0))
            kept = self.policy(confidence, [live[i] for i in open_]) & (drafts != NOTHING)
            pad[index] = torch.where(kept, drafts, pad[index])
            for i, draft, c, k in zip(open_, drafts.tolist(), confidence.tolist(), kept.tolist(), strict=True):
                if draft != NOTHING:
                    slots[i] = Slot(first[i], draft, c, k)
                if k:
                    self._take(rows[live[i]], draft)
        return self._close(rows, live, slots, torch.stack([token1, pad], dim=1))

    def _drafts(self, row: Row) -> bool:
        """Is a draft made for this row?"""
        return row.finish_reason is None

    def _draw(self, logits: Tensor, rows: Sequence[Row], live: Sequence[int]) -> Tensor:
        return self.sampler(logits, [rows[row].history for row in live], live)

    def _take(self, row: Row, token: int) -> None:
        row.append(token)
        if self.stop and bool(self.stop(row.history, None)):
            row.finish_reason = "stop"
        elif row.length >= min(self.max_length, row.max_length or self.max_length):
            row.finish_reason = "length"

    def _close(self, rows: Sequence[Row], live: list[int], slots: list[Slot], ids: Tensor) -> Tensor:
        for index, slot in zip(live, slots, strict=True):
            row = rows[index]
            row.slots.append(slot)
            if row.finish_reason is None and len(row.slots) == row.max_steps:
                row.finish_reason = "length"
            if self.on_slot is not None:
                self.on_slot(index, slot)
        return ids


def make_reader(model: Any) -> PairReader | TokenReader:
    """Pairs for a PIPO model, single tokens for any other causal LM."""
    return PairReader(model) if model.config.model_type == "pipo" else TokenReader(model)
