"""Thoughts of reasoning models: what an answer says after them is what counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
TAIL = 16  # tokens at a prompt's end in which a template may open a thought


def opens_thought(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends within a thought, so that the answer begins in one."""
    text = tokenizer.decode(prompt[-TAIL:])
    return bool(text.rfind(OPEN) > text.rfind(CLOSE))


def conclusion(text: str, opened: bool = False) -> str:
    """What comes after the last thought: all of a text without thoughts, nothing where a thought is not closed.

    `opened`: the text begins within a thought.
    """
    _, closed, after = text.rpartition(CLOSE)
    if OPEN in after:
        return ""
    return after if closed or not opened else ""
