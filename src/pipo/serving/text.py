"""The text of an answer while it is made: whole characters only, and never the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipo.decoding.text_stream import Piece, TextStream


class AnswerText:
    """Decodes one answer. The text ends before the first stop string; its tokens are counted all the same.

    Pieces leave whole and in order. One waits while its text may be the beginning of a stop string, or while the bytes
    of its character are not complete.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stop = [string for string in stop if string]
        self.text = ""  # decoded so far, without a stop string and what follows it
        self.stopped = False
        self._stream = TextStream(tokenizer)
        self._waiting: list[Piece] = []

    def push(self, token: int) -> bool:
        """Add a token; True if it completes a stop string."""
        longest = max(map(len, self.stop), default=1)
        start = max(len(self.text) - longest + 1, 0)
        self._add(self._stream.push(token))
        places = [place for string in self.stop if (place := self.text.find(string, start)) >= 0]
        if places:
            self.stopped = True
            self._cut(min(places))
        return self.stopped

    def take(self) -> list[Piece]:
        """The pieces that can leave."""
        held = 0 if self.stopped else self._held()
        ready, left = 0, sum(len(piece.text) for piece in self._waiting) - held
        for number, piece in enumerate(self._waiting, 1):
            left -= len(piece.text)
            if left < 0:
                break
            if piece.text:
                ready = number
        out, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return out

    def finish(self) -> list[Piece]:
        """All that is left. The bytes of an unfinished character become U+FFFD."""
        self._add(self._stream.finish())
        out, self._waiting = self._waiting, []
        return out

    def _add(self, pieces: list[Piece]) -> None:
        self.text += "".join(piece.text for piece in pieces)
        self._waiting += pieces

    def _cut(self, length: int) -> None:
        """Shorten the text, of which more than this has not left."""
        self.text = self.text[:length]
        self._waiting = [replace(piece, text=piece.text[: max(length - piece.start, 0)]) for piece in self._waiting]

    def _held(self) -> int:
        """Length of the longest end of the text that a stop string may begin with."""
        longest = max((len(string) - 1 for string in self.stop), default=0)
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(string.startswith(self.text[-length:]) for string in self.stop):
                return length
        return 0
