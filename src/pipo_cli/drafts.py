"""Slots as coloured text: accepted drafts green, rejected ones red and struck through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from pipo.pairing import Slot

ACCEPTED, REJECTED = "green", "red strike"


class DraftPainter:
    """Slots in, text out as it becomes known: a character whose bytes lie in several tokens comes with its last."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self.tokenizer = tokenizer
        self.stream = DecodeStream(skip_special_tokens=True)

    def paint(self, slot: Slot) -> Text:
        """What this slot adds."""
        text = Text(self._next(slot.token1))
        if slot.draft is not None and slot.accepted:
            text.append(self._next(slot.draft), ACCEPTED)
        elif slot.draft is not None:
            text.append(self.tokenizer.decode([slot.draft]).replace("\n", "⏎"), REJECTED)
        return text

    def _next(self, token: int) -> str:
        return self.stream.step(self.tokenizer.backend_tokenizer, token) or ""


def render_slots(slots: Sequence[Slot], tokenizer: Any) -> Text:
    """A whole answer."""
    painter = DraftPainter(tokenizer)
    return Text().join(painter.paint(slot) for slot in slots)


def legend(slots: Sequence[Slot]) -> Text:
    """What the colours mean, with counts."""
    drafted = sum(slot.draft is not None for slot in slots)
    accepted = sum(slot.accepted for slot in slots)
    tokens = sum(len(slot.tokens) for slot in slots)
    return Text.assemble(
        f"{tokens} tokens in {len(slots)} steps; drafts: ",
        (f"{accepted} accepted", ACCEPTED),
        ", ",
        (f"{drafted - accepted} rejected", REJECTED),
    )
