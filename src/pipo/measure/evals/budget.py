"""How long an answer may get: in real tokens, or in steps of the decoding loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipo.decoding.engine import Completion
from pipo.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """`tokens:N` allows N real tokens; `slots:N` allows N steps, so up to 2N tokens of a PIPO model."""

    kind: str  # "tokens" or "slots"
    size: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raises `UsageError` for anything but tokens:N or slots:N."""
        match = re.fullmatch(r"(tokens|slots):([1-9][0-9]{0,8})", text)
        if match is None:
            raise UsageError("--budget", f"{text!r} is no budget", "write tokens:N or slots:N, N at least 1")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}"

    def max_new_tokens(self, tokens_per_slot: int) -> int:
        """The limit for a decoder whose steps give at most `tokens_per_slot` tokens."""
        return self.size * tokens_per_slot if self.kind == "slots" else self.size

    def cut(self, completion: Completion, decode: Callable[[Sequence[int]], str]) -> Completion:
        """The completion as it would be had decoding stopped here; `decode` turns ids into text. Its times stay."""
        if self.kind == "tokens" or completion.steps <= self.size:
            return completion
        slots = completion.slots[: self.size]
        ids = [token for slot in slots for token in slot.tokens]
        return replace(completion, slots=slots, text=decode(ids), finish_reason="length")
