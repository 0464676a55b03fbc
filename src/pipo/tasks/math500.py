"""MATH-500: {"problem", "answer", "subject", "unique_id"} a row; its parts are the subjects."""

from __future__ import annotations

from pipo.tasks import boxed
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, text

HUB = Hub("HuggingFaceH4/MATH-500")
score = boxed.score


def question(task: str, index: int, where: str, row: Row) -> Question:
    asked = boxed.messages(text(where, row, "problem"))
    return Question(str(row.get("unique_id", index)), task, row.get("subject"), asked, text(where, row, "answer"))
