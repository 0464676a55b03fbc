"""A running batch that sequences join and leave at any time, each with its own threshold, sampling and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from pipo.decoding.cache import unjoinable
from pipo.decoding.loop import Loop, Row, make_reader
from pipo.decoding.reader import position_limit
from pipo.decoding.sampling import NOTHING, Sampler
from pipo.pairing import Slot, accept, accepts_none


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model, before penalties and truncation, with the likeliest ones beside it."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # likeliest first


@dataclass(kw_only=True, eq=False)
class Member(Row):
    """A sequence with its own rules. `ids` begins with the prompt, and has room for `end` tokens."""

    prompt: list[int]
    end: int  # length at which it is over: prompt and real tokens
    sampler: Sampler
    threshold: float
    stops: Callable[[int], bool]  # told every token, in order; True where it is the last
    emitted: Callable[[Slot], None]  # told every slot; `finish_reason` is set by then
    top_logprobs: int | None = None  # None: no log-probabilities
    logprobs: list[TokenLogprob] = field(default_factory=list)  # one for each real token
    _drawn: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def room(cls, prompt: Sequence[int], end: int, device: Any) -> Tensor:  # [1, end]
        """A buffer for `ids`."""
        ids = torch.zeros(1, end, dtype=torch.long, device=device)
        ids[0, : len(prompt)] = torch.tensor(prompt, device=device)
        return ids

    def draw(self, logits: Tensor) -> Tensor:  # [1, V] -> [1]
        """The next token, by this sequence's sampler and history."""
        logprobs = None if self.top_logprobs is None else torch.log_softmax(logits[0].float(), dim=-1)
        token = self.sampler(logits, [self.history], [0])
        if logprobs is not None and int(token) != NOTHING:
            best = logprobs.topk(self.top_logprobs or 0)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top = [(other, value) for other, value in pairs if math.isfinite(value)]  # a shortlist's are few
            self._drawn.append(TokenLogprob(int(token), float(logprobs[token]), top))
        return token

    def close(self, slot: Slot) -> None:
        """Note a slot; what was drawn for a rejected draft is forgotten."""
        self.logprobs += self._drawn[: len(slot.tokens)]
        self._drawn.clear()
        self.emitted(slot)


@dataclass(frozen=True)
class _OwnThresholds:
    loop: SharedLoop
    drafts: bool = True  # the MTP layer runs, whatever the thresholds

    def __call__(self, confidence: Tensor, rows: Sequence[int]) -> Tensor:  # [B], their rows -> bool [B]
        return accept(confidence, torch.tensor([self.loop.members[row].threshold for row in rows]))


class SharedLoop(Loop):
    """Continuous batching. `admit` and `step` are to be called by one thread.

    The MTP layer runs for every row, whatever its threshold, so that a later row finds its cache as long as the
    backbone's; its LM head runs for those alone whose drafts can be accepted.
    """

    def __init__(self, model: Any) -> None:
        policy = _OwnThresholds(self) if model.config.model_type == "pipo" else None
        greedy = Sampler(LogitsProcessorList(), do_sample=False)  # members have samplers and stops of their own
        super().__init__(make_reader(model), greedy, StoppingCriteriaList(), 0, policy)
        self.model = model
        self.members: list[Member] = []
        self._last: Tensor | None = None  # [B, width], what the next step reads
        self.positions = position_limit(model)

    @staticmethod
    def unsupported(model: Any) -> str | None:
        """The kind of cache layer that keeps this model's rows from joining, None where they can."""
        reader = make_reader(model)
        return unjoinable(reader.cache)

    def admit(self, member: Member) -> None:
        """Read a prompt and emit its first slot; from the next step on it decodes with the others."""
        alone = SharedLoop(self.model)
        alone.members = [member]
        hidden = alone.reader.prefill([member.prompt])
        if self.positions is not None:
            member.max_steps = self.positions - alone.reader.cache.get_seq_length() + 1
        last = alone._emit(hidden, alone.members, [0])
        if member.finish_reason is None:
            with self._all_or_none():
                self._join(alone, last)
                self.members.append(member)

    def _join(self, alone: SharedLoop, last: Tensor) -> None:
        if not self.members:
            self.reader, self._last = alone.reader, last
            return
        assert self._last is not None
        self.reader.join(alone.reader, (len(self.members), 1))  # type: ignore[arg-type]
        self._last = torch.cat([self._last, last])

    def step(self) -> None:
        """One slot for every member that has not finished."""
        with self._all_or_none():
            self.drop_finished()
            if self.members:
                assert self._last is not None
                hidden = self.reader.step(self._last)
                self._last = self._emit(hidden, self.members, list(range(len(self.members))))
                self.drop_finished()

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """After an error the caches of the members may differ in length: nobody can go on."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Drop all members and their caches."""
        self.members, self._last, self.reader = [], None, make_reader(self.model)

    def drop_finished(self) -> None:
        """Those that have a `finish_reason`, set by whomever, leave with all that was kept for them."""
        keep = [i for i, member in enumerate(self.members) if member.finish_reason is None]
        if not keep:
            self.clear()
        elif len(keep) < len(self.members):
            assert self._last is not None
            index = torch.tensor(keep, device=self._last.device)
            self.reader.select(index)
            self.reader.drop_unused()
            self._last = self._last[index]
            self.members = [self.members[i] for i in keep]

    def _drafts(self, row: Row) -> bool:
        assert isinstance(row, Member)
        return row.finish_reason is None and not accepts_none(row.threshold)

    def _draw(self, logits: Tensor, rows: Sequence[Row], live: Sequence[int]) -> Tensor:  # [B, V] -> [B]
        members = [rows[i] for i in live]
        return torch.cat([m.draw(row) for m, row in zip(members, logits.split(1), strict=True)])  # type: ignore[attr-defined]

    def _take(self, row: Row, token: int) -> None:
        assert isinstance(row, Member)
        row.append(token)
        if row.stops(token):
            row.finish_reason = "stop"
        elif row.length >= row.end:
            row.finish_reason = "length"

    def _close(self, rows: Sequence[Row], live: list[int], slots: list[Slot], ids: Tensor) -> Tensor:
        out = super()._close(rows, live, slots, ids)
        for index, slot in zip(live, slots, strict=True):
            member = rows[index]
            assert isinstance(member, Member)
            member.close(slot)
        return out
