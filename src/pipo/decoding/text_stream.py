"""Tokens in, text out as it becomes known: one for the server, its page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What stands for bytes that are no character, or not a whole one yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token and what became known with it. Parts of a character have no text; it comes with the last of them."""

    token: int
    text: str


class TextStream:
    """Decodes one answer. The texts of all pieces and of `finish` join to `decode` of the tokens.

    They differ in one case. A decoder with byte fallback (tokens such as `<0xE2>`) takes a whole run of bytes for
    invalid where any of them is, good characters before it too. Those that were handed out stay; what follows in the
    run becomes U+FFFD, one a byte.

    tokenizers' `DecodeStream` does not do: it keeps for itself what it holds back at the end, it raises at such a run
    and at every token after it, and it needs a fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._before: list[int] = []  # those that have text, just before those held: what comes next may depend on them
        self._held: list[int] = []  # those whose text is not known, and special ones among them

    def push(self, token: int) -> Piece:
        """Add a token."""
        self._held.append(token)
        text = self._new()
        if not text or text.endswith(UNKNOWN):
            return Piece(token, "")
        if decode(self.tokenizer, self._held):
            self._before = []  # else they are a space alone, and with nothing before it decoders drop that
        self._before, self._held = self._before + self._held, []
        return Piece(token, text)

    def finish(self) -> str:
        """What is held back: characters that are not complete, as U+FFFD. Nothing may be added afterwards."""
        text, self._held = self._new(), []
        return text

    def _new(self) -> str:
        before = decode(self.tokenizer, self._before)
        text = decode(self.tokenizer, self._before + self._held)
        if text.startswith(before):
            return text[len(before) :]
        return decode(self.tokenizer, self._held)  # invalid bytes follow good ones


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer: no special tokens, and no space taken away that a tokenizer would call untidy."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def token_text(tokenizer: Any, token: int) -> str:
    """What a token says by itself, special ones too, with the space before it that decoders take off a text's start."""
    once, twice = (tokenizer.decode([token] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
    text: str = twice[len(once) :] if twice.startswith(once) else once
    return text
