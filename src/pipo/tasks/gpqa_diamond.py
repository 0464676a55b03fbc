"""GPQA-Diamond: {"Question", "Correct Answer", "Incorrect Answer 1" to "3", "Record ID"} a row.

Row i shows its choices in the order `Random(i).sample(range(4), 4)` of (correct, incorrect 1, 2, 3), whatever the run's
seed, so that every run asks the same. Its parts are the high-level domains.
"""

from __future__ import annotations

from random import Random

from pipo.tasks import choice
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, text

HUB = Hub("Idavidrein/gpqa", split="train", config="gpqa_diamond")
FIELDS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
score = choice.score


def question(task: str, index: int, where: str, row: Row) -> Question:
    order = Random(index).sample(range(4), 4)
    choices = [text(where, row, FIELDS[i]) for i in order]
    asked = [{"role": "user", "content": choice.asked(text(where, row, "Question"), choices)}]
    letter = choice.LETTERS[order.index(0)]
    return Question(text(where, row, "Record ID"), task, row.get("High-level domain"), asked, letter)
