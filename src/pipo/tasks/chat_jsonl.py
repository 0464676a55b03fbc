"""Questions from the user's own `.jsonl` file: {"question" | "messages", "answer"} a line, scored as mathematics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipo.errors import UsageError
from pipo.tasks import boxed
from pipo.tasks.question import Question

score = boxed.score


def questions(n: int | None, seed: int, path: Path) -> list[Question]:
    """The first `n` lines of `path` (None: all). `messages` are asked as they are. The seed is not used."""
    found: list[Question] = []
    for where, row in read_rows(path, n):
        answer = gold(where, row)
        found.append(Question(str(row.get("id", len(found))), path.stem, None, _messages(where, row), answer, None))
    return found


def read_rows(path: Path, n: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, object) of the first `n` non-empty lines (None: all); refuses what is not a JSON object."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("task", f"cannot read {path}: {error}", "give a UTF-8 .jsonl file") from None
    filled = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise UsageError("task", f"{path} has no lines", "give one JSON object a line")
    for where, line in filled[:n]:
        yield where, _object(where, line)


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"is not JSON ({error})", "write one JSON object a line") from None
    if not isinstance(row, dict):
        raise UsageError(where, f"is a {type(row).__name__}", "write one JSON object a line")
    return row


def text(where: str, row: dict[str, Any], field: str) -> str:
    """The non-empty string in `field`."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where} {field}", "is missing or no text", f'add "{field}": "..."')
    return value


def gold(where: str, row: dict[str, Any]) -> str:
    """The `answer`, a string or a number; whole floats lose their `.0`."""
    value = row.get("answer")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(where, row, "answer")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _messages(where: str, row: dict[str, Any]) -> list[dict[str, str]]:
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
