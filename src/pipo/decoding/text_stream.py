"""Tokens in, text out as it becomes known: one for the server, its page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no character, or not a whole one yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token's part of the text: "" of a special one, and of all parts of a character but the last."""

    token: int
    text: str
    start: int  # characters of the text before it


class TextStream:
    """Decodes one answer. Every token comes out as one piece, in order; their texts join to `decode` of the tokens.

    The two differ in one case. A decoder with byte fallback (tokens such as `<0xE2>`) takes a whole run of bytes for
    invalid where any of them is, good characters before it too. Those that came out stay; what follows in the run
    becomes U+FFFD, one a byte.

    tokenizers' `DecodeStream` does not do: it keeps for itself what it holds back at the end, it raises at such a run
    and at every token after it, and it needs a fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._length = 0
        self._before: list[int] = []  # those that came out last, and have text: what comes next may depend on them
        self._held: list[int] = []  # those whose text is not known, and special ones

    def push(self, token: int) -> list[Piece]:
        """Add a token -> the pieces that are certain now."""
        self._held.append(token)
        text = self._text(self._held)
        return [] if not text or text.endswith(UNKNOWN) else self._out(text)

    def finish(self) -> list[Piece]:
        """What is held back; characters that are not complete are U+FFFD. No token may come after it."""
        return self._out(self._text(self._held))

    def _out(self, text: str) -> list[Piece]:
        pieces, done = [], 0
        for count, token in enumerate(self._held, 1):
            part = self._text(self._held[:count]) if count < len(self._held) else text
            end = max(done, len(part)) if text.startswith(part) else done  # a part of a character is none yet
            pieces.append(Piece(token, text[done:end], self._length + done))
            done = end
        if decode(self.tokenizer, self._held):
            self._before = []  # else they are a space alone, and with nothing before it decoders drop that
        self._before, self._held = self._before + self._held, []
        self._length += len(text)
        return pieces

    def _text(self, held: list[int]) -> str:
        """What these add to the tokens before them."""
        before, text = decode(self.tokenizer, self._before), decode(self.tokenizer, self._before + held)
        if text.startswith(before):
            return text[len(before) :]
        return decode(self.tokenizer, held)  # invalid bytes follow good ones


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer: no special tokens, and no space taken away that a tokenizer would call untidy."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def token_text(tokenizer: Any, token: int) -> str:
    """What a token says by itself, special ones too, with the space before it that decoders take off a text's start."""
    once, twice = (tokenizer.decode([token] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
    text: str = twice[len(once) :] if twice.startswith(once) else once
    return text
