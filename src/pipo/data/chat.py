"""Chat JSONL: reading, checking, tokenizing with the loss on the assistant's turns."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pipo.data.layout import lay_out
from pipo.errors import UsageError, first_line
from pipo.pairing import IGNORE


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is not trained on, and why."""

    file: str
    line: int  # from 1
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One conversation: ids, and labels that are IGNORE outside the answers. Not shifted, not paired."""

    ids: list[int]
    labels: list[int]


Chat = list[dict[str, Any]]
"""Messages with "role" and "content"."""

PROMPT_KEYS = ("prompt", "question")
"""What a line may hold in place of "messages": a text, the user's."""


def read_chats(path: str | Path, *, answered: bool = True, field: str = "data") -> Iterator[tuple[int, Chat | Problem]]:
    """Yield (line number, messages or what is wrong with the line). Raises `UsageError` that names `field` for a file
    that cannot be read.

    `answered`: a conversation without an assistant turn is a problem.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    chat = parse_chat(line)
                    if answered and not isinstance(chat, str) and not has_answer(chat):
                        chat = "no assistant turn"
                    yield number, Problem(str(path), number, chat) if isinstance(chat, str) else chat
    except OSError as error:
        raise UsageError(field, f"cannot read {path} ({first_line(error)})", "name a chat JSONL file") from error


def parse_chat(line: str | bytes) -> Chat | str:
    """The messages of a line of chat or prompt JSONL, or what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "no UTF-8"
    except RecursionError:
        return "no JSON (nested too deeply)"
    except ValueError as error:
        return f"no JSON ({error})"
    if not isinstance(row, dict):
        return "no JSON object"
    messages: Any = next((row[key] for key in ("messages", *PROMPT_KEYS) if key in row), None)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return check_messages(messages) or messages


def has_answer(chat: Chat) -> bool:
    """Whether there is a turn to train on."""
    return any(message["role"] == "assistant" for message in chat)


def check_messages(messages: Any) -> str | None:
    """What is wrong with a list of messages, None where nothing is."""
    if not isinstance(messages, list) or not messages:
        return 'no "messages" list'
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return 'a message without "role"'
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return f"an empty {message['role']} turn"
    return None


def tokenize_chat(tokenizer: Any, messages: Sequence[dict[str, Any]], prefix: str = "") -> Tokens:
    """Tokenize segment by segment, so that every prompt has exactly the ids that it has at inference.

    An answer's targets run from its first token through the end-of-turn token; `prefix` (already part of the prompt at
    inference) is not a target. Raises `ValueError` where the template does not render a conversation by appending.
    """
    ids: list[int] = []
    labels: list[int] = []
    done = ""

    def put(text: str, target: bool) -> None:
        new = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids.extend(new)
        labels.extend(new if target else [IGNORE] * len(new))

    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:turn], add_generation_prompt=True)
        whole = render(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ValueError(f"the chat template rewrites what comes before turn {turn}")
        answer = whole[len(prompt) :]
        head = prefix if prefix and answer.startswith(prefix) else ""
        body, tail = _cut_after_end(answer[len(head) :], tokenizer)
        put(prompt[len(done) :] + head, target=False)
        put(body, target=True)
        done = whole[: len(whole) - len(tail)]
    return Tokens(ids, labels)


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


def _cut_after_end(answer: str, tokenizer: Any) -> tuple[str, str]:
    """The answer through its end-of-turn token, and what the template puts after that."""
    end = answer.rfind(tokenizer.eos_token) if tokenizer.eos_token else -1
    cut = len(answer) if end < 0 else end + len(tokenizer.eos_token)
    return answer[:cut], answer[cut:]


def asked(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation up to its last answer, if it has one."""
    turns = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    return chat[: turns[-1]] if turns else chat


class PromptDataset(Dataset[dict[str, list[int]]]):
    """Tokenized prompts: each conversation up to its last answer. `problems` names every line that is left out."""

    def __init__(self, files: Sequence[str], tokenizer: Any, *, max_length: int, prefix: str = "") -> None:
        self.items: list[list[int]] = []
        self.problems: list[Problem] = []
        for file in files:
            for number, chat in read_chats(file, answered=False):
                item = chat if isinstance(chat, Problem) else self._tokenize(tokenizer, chat, prefix, max_length)
                if isinstance(item, list):
                    self.items.append(item)
                else:
                    self.problems.append(item if isinstance(item, Problem) else Problem(file, number, item))
        if not self.items:
            first = f", first: {self.problems[0]}" if self.problems else ""
            raise UsageError("data", f"no prompt in {', '.join(files)}{first}", "name a chat JSONL file")

    @staticmethod
    def _tokenize(tokenizer: Any, chat: list[dict[str, Any]], prefix: str, max_length: int) -> list[int] | str:
        before = asked(chat)
        if not before:
            return "nothing before the answer"
        text = render(tokenizer, before, add_generation_prompt=True) + prefix
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if len(ids) <= max_length else f"{len(ids)} tokens, more than max_length {max_length}"

    @property
    def lengths(self) -> list[int]:
        """Tokens in each prompt."""
        return [len(item) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"prompt": self.items[index]}


class ChatDataset(Dataset[dict[str, list[int]]]):
    """Tokenized conversations. `problems` names every line that is left out.

    Items depend on (seed, epoch, index) alone, so that a resumed run sees what an unbroken one sees.
    """

    def __init__(self, files: Sequence[str], tokenizer: Any, *, max_length: int, prefix: str = "") -> None:
        self.items: list[Tokens] = []
        self.problems: list[Problem] = []
        for file in files:
            for number, chat in read_chats(file):
                item = chat if isinstance(chat, Problem) else self._tokenize(tokenizer, chat, prefix, max_length)
                if isinstance(item, Tokens):
                    self.items.append(item)
                else:
                    reason = item if isinstance(item, Problem) else Problem(file, number, item)
                    self.problems.append(reason)
        if not self.items:
            first = f", first: {self.problems[0]}" if self.problems else ""
            raise UsageError("data", f"nothing to train on in {', '.join(files)}{first}", "see `pipo data FILE`")

    @staticmethod
    def _tokenize(tokenizer: Any, chat: list[dict[str, Any]], prefix: str, max_length: int) -> Tokens | str:
        try:
            tokens = tokenize_chat(tokenizer, chat, prefix)
        except ValueError as error:
            return str(error)
        if len(tokens.ids) > max_length:
            return f"{len(tokens.ids)} tokens, more than max_length {max_length}"
        return tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens in each conversation, PADs not counted."""
        return [len(item.ids) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        item = self.items[index]
        return {"input_ids": item.ids, "labels": item.labels}


class PairDataset(Dataset[dict[str, Any]]):
    """A `ChatDataset` laid out in pairs; the PADs are drawn anew every epoch.

    `noise` adds `draft_noise`, the uniform numbers that a pair's draft is drawn with (`PipoForCausalLM.forward`).
    """

    def __init__(
        self, chats: ChatDataset, pad: int, *, scheme: str, max_ratio: float, seed: int, noise: bool = False
    ) -> None:
        self.chats, self.pad, self.scheme, self.max_ratio, self.seed = chats, pad, scheme, max_ratio, seed
        self.noise = noise
        self.epoch = 0

    @property
    def lengths(self) -> list[int]:
        return self.chats.lengths

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.chats.items[index]
        rng = random.Random(f"{self.seed}/{self.epoch}/{index}")
        ratio = rng.uniform(0, self.max_ratio)
        layout = lay_out(item.ids, item.labels, self.pad, self.scheme, ratio, rng)
        row: dict[str, Any] = {"input_ids": layout.ids, "labels": layout.labels}
        if self.noise:
            row["draft_noise"] = [rng.random() for _ in range(len(layout.ids) // 2 - 1)]
        return row
