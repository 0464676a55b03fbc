"""LongBench v2: {"_id", "question", "choice_A" to "choice_D", "answer", "length", "domain", "context"} a row.

`longbench_v2` has the rows whose `length` is "short", as the paper; `longbench_v2_medium` and `longbench_v2_long` the
others. Choices stay in the data set's order. The parts are the domains.
"""

from __future__ import annotations

from pipo.errors import UsageError
from pipo.tasks import choice
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, text

HUB = Hub("zai-org/LongBench-v2", split="train")
LENGTHS = ("short", "medium", "long")
READ = "Read the text, then answer the question about it."
score = choice.score


def question(task: str, index: int, where: str, row: Row) -> Question | None:
    """None for a row of another length."""
    length = text(where, row, "length")
    if length not in LENGTHS:
        raise UsageError(f"{where} length", f"{length!r} is none of {', '.join(LENGTHS)}", "correct it")
    if length != (task.removeprefix("longbench_v2").removeprefix("_") or "short"):
        return None
    choices = [text(where, row, f"choice_{letter}") for letter in choice.LETTERS]
    body = choice.asked(text(where, row, "question"), choices)
    asked = [{"role": "user", "content": f"{READ}\n\n{text(where, row, 'context').strip()}\n\n{body}"}]
    answer = text(where, row, "answer")
    if answer not in choice.LETTERS:
        raise UsageError(f"{where} answer", f"{answer!r} is no letter from A to D", "correct it")
    return Question(text(where, row, "_id"), task, row.get("domain"), asked, answer)
