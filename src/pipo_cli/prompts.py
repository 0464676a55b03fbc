"""Prompts from the command line, a file or stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipo.errors import UsageError

Prompt = str | list[dict[str, Any]]
"""A question, or chat messages."""


def read_prompt(text: str) -> str:
    """PROMPT as typed; `-` is stdin. Raises `UsageError`."""
    prompt = sys.stdin.read() if text == "-" else text
    if not prompt.strip():
        raise UsageError("PROMPT", "is empty", "write a question")
    return prompt


def read_prompts(file: str) -> list[Prompt]:
    """One prompt a line, or JSONL with "prompt", "question" or "messages"; `-` is stdin. Raises `UsageError`."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("--file", f"cannot read {file} ({error})", "name a UTF-8 text or JSONL file") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError("--file", f"{file} has no prompts", "write one a line")
    if file.endswith(".jsonl") or _is_object(lines[0][1]):
        return [_from_json(f"{file}:{number}", line) for number, line in lines]
    return [line.strip() for _, line in lines]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _from_json(where: str, line: str) -> Prompt:
    from pipo.data.chat import parse_chat

    chat = parse_chat(line)
    if isinstance(chat, str):
        fix = 'write {"prompt": "..."} or {"messages": [{"role": ..., "content": ...}]}'
        raise UsageError(where, f"holds no prompt ({chat})", fix)
    if chat.messages[-1]["role"] == "assistant":
        raise UsageError(where, "ends with an assistant turn", "end it with the question")
    if chat.tools is not None:
        raise UsageError(where, "has tools, which are not offered here", "ask a server, see `pipo serve`")
    return chat.messages
