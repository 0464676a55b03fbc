"""AIME 2025 from a local file: {"id", "question", "answer"} a line, the answer a whole number from 0 to 999."""

from __future__ import annotations

from pathlib import Path

from pipo.tasks import boxed
from pipo.tasks.chat_jsonl import gold, read_rows, text
from pipo.tasks.question import Question

score = boxed.score


def questions(n: int | None, seed: int, path: Path) -> list[Question]:
    """The first `n` lines of `path` (None: all). The seed is not used."""
    found = []
    for where, row in read_rows(path, n):
        asked = boxed.messages(text(where, row, "question"))
        found.append(Question(text(where, row, "id"), "aime2025", None, asked, gold(where, row), None))
    return found
