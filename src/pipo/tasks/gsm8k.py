"""GSM8K from a local file: {"question", "answer"} a line, the answer a worked solution that ends with `#### N`."""

from __future__ import annotations

import re
from pathlib import Path

from pipo.errors import UsageError
from pipo.tasks import boxed
from pipo.tasks.chat_jsonl import read_rows, text
from pipo.tasks.question import Question

score = boxed.score
CALCULATION = re.compile(r"<<[^<>]*>>")  # the data set's calculator annotations


def questions(n: int | None, seed: int, path: Path) -> list[Question]:
    """The first `n` lines of `path` (None: all). The seed is not used."""
    found: list[Question] = []
    for where, row in read_rows(path, n):
        steps, mark, answer = text(where, row, "answer").rpartition("####")
        if not mark:
            raise UsageError(f"{where} answer", "does not end with #### N", "give the file in GSM8K's own form")
        solution = CALCULATION.sub("", steps).strip()
        asked = boxed.messages(text(where, row, "question"))
        found.append(Question(str(len(found)), "gsm8k", None, asked, answer.strip().replace(",", ""), solution))
    return found
