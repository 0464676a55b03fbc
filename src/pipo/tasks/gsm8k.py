"""GSM8K: {"question", "answer"} a row, the answer a worked solution that ends with `#### N`."""

from __future__ import annotations

import re

from pipo.errors import UsageError
from pipo.tasks import boxed
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, text

HUB = Hub("openai/gsm8k", config="main")
score = boxed.score
CALCULATION = re.compile(r"<<[^<>]*>>")  # the data set's calculator annotations


def question(task: str, index: int, where: str, row: Row) -> Question:
    steps, mark, answer = text(where, row, "answer").rpartition("####")
    if not mark:
        raise UsageError(f"{where} answer", "does not end with #### N", "give the file in GSM8K's own form")
    asked = boxed.messages(text(where, row, "question"))
    solution = CALCULATION.sub("", steps).strip()
    return Question(str(index), task, None, asked, answer.strip().replace(",", ""), solution)
