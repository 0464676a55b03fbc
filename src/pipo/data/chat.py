"""Chat JSONL: what a line may be, reading and checking it, and the chat template's text of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipo.errors import UsageError, first_line

BOM = b"\xef\xbb\xbf"

Message = dict[str, Any]
"""With "role" and "content", and what else the template reads: "reasoning_content", "tool_calls"."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is not trained on, and why."""

    file: str
    line: int  # from 1
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def refuse_problems(problems: Sequence[Problem], field: str) -> None:
    """Raises `UsageError` that names the first line that would be left out, if there is one."""
    if problems:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UsageError(field, f"{problems[0]}{rest}", "correct the file, or leave strict out")


@dataclass(frozen=True, slots=True)
class Chat:
    """A good line: what is said, and the tools that may be called."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None

    @property
    def answers(self) -> list[int]:
        """The places of the assistant's turns."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def before(self, turn: int) -> Chat:
        """What is said before a turn."""
        return Chat(self.messages[:turn], self.tools)

    def asked(self) -> Chat:
        """The conversation up to its last answer, if it has one."""
        return self.before(self.answers[-1]) if self.answers else self


PROMPT_KEYS = ("prompt", "question")
"""What a line may hold in place of "messages": a text, the user's."""


def read_chats(path: str | Path, *, answered: bool = True, field: str = "data") -> Iterator[tuple[int, Chat | Problem]]:
    """Yield (line number, conversation or what is wrong with the line). Raises `UsageError` that names `field` for a
    file that cannot be read.

    `answered`: a conversation without an assistant turn is a problem.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(BOM)
                if line.strip():
                    chat = parse_chat(line)
                    if answered and isinstance(chat, Chat) and not chat.answers:
                        chat = NO_ANSWER
                    yield number, Problem(str(path), number, chat) if isinstance(chat, str) else chat
    except OSError as error:
        raise UsageError(field, f"cannot read {path} ({first_line(error)})", "name a chat JSONL file") from error


NO_ANSWER = "no assistant turn"


def parse_chat(line: str | bytes) -> Chat | str:
    """A line of chat or prompt JSONL, or what is wrong with it. Arguments of tool calls become objects."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return "no UTF-8"
    except UnicodeEncodeError:
        return "half a surrogate pair, which is no text"
    except RecursionError:
        return "no JSON (nested too deeply)"
    except ValueError as error:
        return f"no JSON ({error})"
    if not isinstance(row, dict):
        return "no JSON object"
    messages: Any = next((row[key] for key in ("messages", *PROMPT_KEYS) if key in row), None)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    try:
        return Chat(_messages(messages), _tools(row.get("tools")))
    except ValueError as error:
        return str(error)


def check_messages(messages: Any) -> str | None:
    """What is wrong with a list of messages, None where nothing is."""
    try:
        _messages(messages)
    except ValueError as error:
        return str(error)
    return None


def _messages(messages: Any) -> list[Message]:
    """The messages as a template reads them. Raises `ValueError` that says what is wrong."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('no "messages" list')
    return [_message(message) for message in messages]


def _message(message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError('a message without "role"')
    role, content = message["role"], message.get("content")
    if (calls := message.get("tool_calls")) or role == "tool":
        content = content or ""  # a call needs no words, and a tool may return none
    if isinstance(content, (list, dict)):
        raise ValueError(f"the content of a {role} turn is no text")
    if not isinstance(content, str) or not (content.strip() or calls or role == "tool"):
        raise ValueError(f"an empty {role} turn")
    if message.get("weight") not in (None, 0, 1):
        raise ValueError(f'"weight" {message["weight"]!r} is neither 0 nor 1')
    if not isinstance(message.get("reasoning_content") or "", str):
        raise ValueError('"reasoning_content" is no text')
    out = {**message, "content": content}
    return {**out, "tool_calls": [_call(call) for call in _objects(calls, "tool_calls")]} if calls else out


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call, its arguments an object: OpenAI's are a text, templates want what that says."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call without a name")
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the tool call {function['name']} are no JSON object")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except ValueError:
            raise ValueError('"tools" is no list of objects') from None
    return _objects(tools, "tools") if tools else None


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError(f'"{name}" is no list of objects')
    return value


def render(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    thinking: bool | None = None,
    **options: Any,
) -> str:
    """The chat template's text; `thinking` is its `enable_thinking`, None its default; `options` are its others.

    Raises `UsageError` where the tokenizer has no template, or its template no such switch.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("chat_template", "the tokenizer has none", "add chat_template.jinja to the model's folder")
    options["add_generation_prompt"] = add_generation_prompt
    if thinking is not None:
        if "enable_thinking" not in str(tokenizer.chat_template):
            raise UsageError("--thinking", "the model's chat template has no enable_thinking", "leave it out")
        options["enable_thinking"] = thinking
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))


def encode_prompt(tokenizer: Any, prompt: str | Sequence[dict[str, Any]], **options: Any) -> list[int]:
    """A question or chat messages -> the ids of the templated prompt; `options` as in `render`. Raises `UsageError`."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not any(str(message.get("content", "")).strip() for message in messages):
        raise UsageError("PROMPT", "is empty", "write a question")
    text = render(tokenizer, messages, add_generation_prompt=True, **options)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


SET_HERE = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize"}
"""Of `apply_chat_template`; no options of a template."""


def check_template(tokenizer: Any, options: dict[str, Any], field: str = "data.template") -> None:
    """Raises `UsageError` for an option that the chat template does not mention."""
    for name in options:
        if name in SET_HERE or not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            raise UsageError(f"{field}.{name}", "the model's chat template has no such option", "leave it out")


PROBE = "pipo asks where an answer ends"


def turn_end(tokenizer: Any, **options: Any) -> str:
    """The token that follows an answer in the chat template's text; its tokenizer's EOS where it cannot be asked.

    Raises `UsageError` where none follows: nothing would then teach a model to stop.
    """
    asked = [{"role": "user", "content": PROBE[::-1]}, {"role": "assistant", "content": PROBE}]
    try:
        text = render(tokenizer, asked, add_generation_prompt=False, **options)
    except UsageError:
        raise
    except Exception:  # whatever a template raises
        text = PROBE + (tokenizer.eos_token or "")
    tail = text.rpartition(PROBE)[2]
    found = [(tail.find(token), token) for token in added_tokens(tokenizer) if token in tail]
    if not found:
        problem = "writes no token behind an answer that could end it"
        raise UsageError("chat_template", problem, "let it write the tokenizer's EOS there")
    return min(found, key=lambda place: (place[0], -len(place[1])))[1]


def added_tokens(tokenizer: Any, special: bool = False) -> set[str]:
    """The tokens that are one wherever their text stands. `special`: only those that are no part of what is said."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special or not special}
    return {token for token in added | set(tokenizer.all_special_tokens) if token}
