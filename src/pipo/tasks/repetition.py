"""Answers that end in a loop."""

from __future__ import annotations

PERIODS = range(20, 401)
"""Characters of the string that is said again and again."""


def repeats(text: str) -> bool:
    """Whether `text` ends in a loop: a string of 20 to 400 characters three times over."""
    return any(len(text) >= 3 * n and text.endswith(text[-n:] * 3) for n in PERIODS)
