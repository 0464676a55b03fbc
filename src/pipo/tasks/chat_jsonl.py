"""Questions from the user's own `.jsonl` file: {"question" | "messages", "answer"} a line, scored as mathematics."""

from __future__ import annotations

from typing import Any

from pipo.errors import UsageError
from pipo.tasks import boxed
from pipo.tasks.question import Question
from pipo.tasks.rows import Row, gold, text

score = boxed.score


def question(task: str, index: int, where: str, row: Row) -> Question:
    """`messages` are asked as they are."""
    return Question(str(row.get("id", index)), task, None, messages(where, row), gold(where, row), None)


def messages(where: str, row: Row) -> list[dict[str, str]]:
    if "messages" not in row:
        return boxed.messages(text(where, row, "question"))
    chat = row["messages"]
    if not isinstance(chat, list) or not chat or not all(map(_is_message, chat)):
        raise UsageError(f"{where} messages", "is no chat", 'write [{"role": "user", "content": "..."}]')
    if chat[-1]["role"] != "user":
        raise UsageError(f"{where} messages", "does not end with the user's turn", "remove the turns after it")
    return [{"role": message["role"], "content": message["content"]} for message in chat]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
