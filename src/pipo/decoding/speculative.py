"""Speculative decoding with the base as its exact verifier: as fast as its drafts are right, and lossless.

A forward reads a token and its draft. What the base would have drawn in the draft's place is known then: the draft is
accepted with probability min(1, p / q), or a token of the normalised max(p - q, 0) takes its place (Leviathan et al.
2023, Chen et al. 2023). p and q are what the base and the drafter draw from, after all logits processors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipo.decoding.loop import Loop, Row
from pipo.decoding.mtp_base import VerifyingReader
from pipo.pairing import Slot, Verified


def verify(
    p: Tensor,  # [B, V] what the base draws from
    q: Tensor,  # [B, V] what the draft was drawn from
    draft: Tensor,  # [B]
    u: Tensor,  # [B] uniform in [0, 1)
) -> tuple[Tensor, Tensor]:  # bool [B], [B, V]
    """Which drafts are accepted, and the weights that another token is drawn by where one is not."""
    at = draft[:, None]
    accepted = u * q.gather(1, at).squeeze(1) < p.gather(1, at).squeeze(1)
    rest = (p - q).clamp(min=0)
    return accepted, torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # p where the two are equal but for rounding


@dataclass
class SpeculativeLoop(Loop):
    """The prefill gives one token; every later step a kept draft and the token after it, or one token in its place."""

    reader: VerifyingReader
    pending: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # row -> draft [], drawn from [V]

    def _emit(self, hidden: Tensor, rows: Sequence[Row], live: list[int]) -> Tensor:  # [B, H] -> ids [B, 2]
        if self.pending:
            last, kept = self._verified(rows, live)
        else:
            last, kept = self._draw(self.reader.logits(hidden), rows, live), torch.ones_like(hidden[:, 0]).bool()
            for row, token in zip(live, last.tolist(), strict=True):
                self._take(rows[row], token)
            self._close(rows, live, [Verified(token) for token in last.tolist()], last)
        self.first_slot_at = self.first_slot_at or time.perf_counter()
        return torch.stack([last, self._draft(last, kept, rows, live)], dim=1)

    def _verified(self, rows: Sequence[Row], live: list[int]) -> tuple[Tensor, Tensor]:
        """One step's tokens for every live row; returns each row's last [B], and whether its draft was kept [B]."""
        drafts, q = (torch.stack([self.pending[row][part] for row in live]) for part in (0, 1))
        logits = self.reader.logits(self.reader.hidden)  # [B, 2, V]
        p = self.sampler.distribution(logits[:, 0], [rows[row].history for row in live])
        kept, weights = verify(p, q, drafts, self.sampler.uniform(p, live))
        if self.policy is not None:
            kept = self.policy(kept, live)
        place = drafts.clone()
        gone = (~kept).nonzero().squeeze(1)
        if len(gone):
            place[gone] = self.sampler.pick(weights[gone], [live[i] for i in gone.tolist()])
        self.reader.settle(place, kept)
        for row, token in zip(live, place.tolist(), strict=True):
            self._take(rows[row], token)
        last, bonus = self._bonus(logits[:, 1], place, kept, rows, live)
        parts = zip(place.tolist(), drafts.tolist(), kept.tolist(), bonus, strict=True)
        slots: list[Slot] = [Verified(token, draft, accepted=keep, bonus=after) for token, draft, keep, after in parts]
        self._close(rows, live, slots, last)
        return last, kept

    def _bonus(
        self, logits: Tensor, place: Tensor, kept: Tensor, rows: Sequence[Row], live: list[int]
    ) -> tuple[Tensor, list[int | None]]:  # -> [B], a token or None for each row
        """The token after every accepted draft that did not end its answer."""
        last = place.clone()
        bonus: list[int | None] = [None] * len(live)
        index = [i for i, keep in enumerate(kept.tolist()) if keep and rows[live[i]].finish_reason is None]
        if not index:
            return last, bonus
        last[index] = self._draw(logits[index], rows, [live[i] for i in index])
        for i in index:
            bonus[i] = int(last[i])
            self._take(rows[live[i]], int(last[i]))
        return last, bonus

    def _draft(self, last: Tensor, kept: Tensor, rows: Sequence[Row], live: list[int]) -> Tensor:  # [B] x 2 -> [B]
        """A draft of what follows each row's last token; a row that has ended gets none."""
        drafts, self.pending = last.clone(), {}
        index = [i for i, row in enumerate(live) if rows[row].finish_reason is None]
        if index:
            open_rows = [live[i] for i in index]
            logits = self.reader.logits(self.reader.draft_after(last, kept)[index])
            q = self.sampler.distribution(logits, [rows[row].history for row in open_rows])
            drafts[index] = self.sampler.pick(q, open_rows)
            self.pending = {row: (drafts[i], q[n]) for n, (i, row) in enumerate(zip(index, open_rows, strict=True))}
        return drafts
