"""Slots as coloured text: accepted drafts green, rejected ones red and struck through."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from pipo.decoding.text_stream import Piece
    from pipo.pairing import Slot

ACCEPTED, REJECTED = "green", "red strike"
COLOURS = f"Accepted drafts [{ACCEPTED}]green[/], rejected ones [{REJECTED}]red[/]."


class DraftPainter:
    """Slots in, text out as it becomes known: a character whose bytes lie in several tokens comes with its last.

    Rejected drafts are left out for a console without colours, where they would read as part of the answer.
    """

    def __init__(self, tokenizer: Any, console: Console | None = None) -> None:
        from pipo.decoding.text_stream import TextStream

        self.tokenizer = tokenizer
        self.rejected = console is None or console.color_system is not None
        self.stream = TextStream(tokenizer)
        self.styles: deque[str] = deque()  # of the tokens whose text is not known

    def paint(self, slot: Slot) -> Text:
        """What this slot adds."""
        from pipo.decoding.text_stream import token_text

        text = self._next(slot.token1, "")
        if slot.draft is not None and slot.accepted:
            text += self._next(slot.draft, ACCEPTED)
        elif slot.draft is not None and self.rejected:
            text.append(token_text(self.tokenizer, slot.draft).replace("\n", "⏎"), REJECTED)
        return text

    def finish(self) -> Text:
        """What is left at the end: the bytes of an unfinished character."""
        return self._text(self.stream.finish())

    def _next(self, token: int, style: str) -> Text:
        self.styles.append(style)
        return self._text(self.stream.push(token))

    def _text(self, pieces: Sequence[Piece]) -> Text:
        return Text.assemble(*((piece.text, self.styles.popleft()) for piece in pieces))


def render_slots(slots: Sequence[Slot], tokenizer: Any, console: Console | None = None) -> Text:
    """A whole answer."""
    painter = DraftPainter(tokenizer, console)
    return Text().join([*(painter.paint(slot) for slot in slots), painter.finish()])


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
