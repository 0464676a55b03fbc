"""AIME 2025: {"id", "problem" (or "question"), "answer"} a row, the answer a whole number from 0 to 999."""

from __future__ import annotations

from pipo.tasks import boxed
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, gold, text

HUB = Hub("math-ai/aime25")
score = boxed.score


def question(task: str, index: int, where: str, row: Row) -> Question:
    asked = boxed.messages(text(where, row, "problem", "question"))
    return Question(gold(where, row, "id"), task, None, asked, gold(where, row), None)
