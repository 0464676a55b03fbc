"""Conversations -> examples: one an assistant turn, after exactly the prompt that it has at inference."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from pipo.data.chat import Chat, Message, added_tokens, check_template, render, turn_end
from pipo.errors import UsageError, first_line

OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
NO_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
"""How a prompt may end: the answer is to begin with a thought, or with none."""


class Answer(NamedTuple):
    """Targets: a row's ids from `start` up to `stop`, of which all before `stop` is read."""

    start: int
    stop: int
    turn: int


@dataclass(frozen=True, slots=True)
class Row:
    """The ids of a conversation's examples, where each begins with the whole one before it; none for a prompt alone."""

    ids: list[int]
    answers: list[Answer]


class Unfit(Exception):
    """Why a conversation makes no examples."""


class Examples:
    """Makes them. `template` are options of the chat template; `prefix` starts every answer, within the prompt.

    Raises `UsageError` for a template that takes no such option, or does not end an answer (unless `prompts`: then rows
    are prompts alone, up to the last answer).
    """

    def __init__(
        self, tokenizer: Any, *, template: dict[str, Any] | None = None, prefix: str = "", prompts: bool = False
    ) -> None:
        self.tokenizer, self.template, self.prefix, self.prompts = tokenizer, template or {}, prefix, prompts
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError("chat_template", "the tokenizer has none", "add chat_template.jinja to the model's folder")
        check_template(tokenizer, self.template)
        self.end = "" if prompts else turn_end(tokenizer, **self.template)
        self.marks_starts = self.encode("\nThe") != self.encode("\n") + self.encode("The")  # of a text, as of a word
        self.special = re.compile("|".join(map(re.escape, sorted(added_tokens(tokenizer, special=True)))) or r"(?!)")

    def rows(self, chat: Chat) -> list[Row] | str:
        """A conversation's examples, as few rows as hold them; or why there are none, whatever is raised."""
        try:
            self._check(chat)
            return [self._prompt(chat.asked())] if self.prompts or not chat.answers else self._answers(chat)
        except Unfit as error:
            return str(error)
        except jinja2.TemplateError as error:
            return f"the chat template refuses it ({first_line(error)})"
        except Exception as error:  # templates and tokenizers raise what they like
            return f"cannot be rendered and tokenized ({type(error).__name__}: {first_line(error)})"

    def _answers(self, chat: Chat) -> list[Row]:
        rows: list[Row] = []
        for turn in chat.answers:
            if chat.messages[turn].get("weight") == 0:
                continue
            prompt, answer = self._texts(chat, turn)
            ids = self.encode(prompt)
            whole = ids + self._continued(prompt, ids, answer)
            before = []
            if rows and ids[: len(rows[-1].ids)] == rows[-1].ids:
                before = rows.pop().answers
            rows.append(Row(whole, [*before, Answer(len(ids), len(whole), turn)]))
        if not rows:
            raise Unfit('every assistant turn has "weight" 0')
        return rows

    def _continued(self, prompt: str, ids: list[int], answer: str) -> list[int]:
        """An answer's ids, behind its prompt's, which no token of the answer joins at inference."""
        whole = self.encode(prompt + answer) if self.marks_starts else []
        return whole[len(ids) :] if whole[: len(ids)] == ids and whole else self.encode(answer)

    def _prompt(self, chat: Chat) -> Row:
        if not chat.messages:
            raise Unfit("nothing before the answer")
        text = self._render(chat, add_generation_prompt=True)
        more = "" if text.endswith(self.prefix) else self.prefix
        return Row(self.encode(text + more), [])

    def encode(self, text: str) -> list[int]:
        """As at inference: the text holds all that the model reads."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def _texts(self, chat: Chat, turn: int) -> tuple[str, str]:
        """The prompt of a turn, and its answer through the token that ends it."""
        prompt = self._render(chat.before(turn), add_generation_prompt=True)
        whole = self._render(chat.before(turn + 1), add_generation_prompt=False)
        message = chat.messages[turn]
        rest = whole[len(prompt) :] if whole.startswith(prompt) else _rest(prompt, whole, message)
        if rest is None:
            raise Unfit(f"message {turn + 1}: {_disagreement(prompt)}")
        if lost := _lost(message, rest):
            raise Unfit(f"message {turn + 1}: the chat template drops its {lost}")
        answer = self._through_end(rest, turn)
        if self.prefix and not prompt.endswith(self.prefix) and answer.startswith(self.prefix):
            return prompt + self.prefix, answer[len(self.prefix) :]
        return prompt, answer

    def _through_end(self, rest: str, turn: int) -> str:
        """Without what the template puts behind the end. Some turns end in a token of their own, as tool calls do."""
        if (start := rest.rfind(self.end)) >= 0:
            return rest[: start + len(self.end)]
        ends = [match.end() for match in self.special.finditer(rest)]
        if not ends:
            raise Unfit(f"message {turn + 1}: the chat template does not end it")
        return rest[: ends[-1]]

    def _render(self, chat: Chat, *, add_generation_prompt: bool) -> str:
        options = self.template if chat.tools is None else {**self.template, "tools": chat.tools}
        return render(self.tokenizer, chat.messages, add_generation_prompt=add_generation_prompt, **options)

    def _check(self, chat: Chat) -> None:
        """What a template would pass over in silence, and what a tokenizer would take for a sign of the template's."""
        for turn, message in enumerate(chat.messages):
            calls = json.dumps(message.get("tool_calls"), ensure_ascii=False)
            for text in (message["content"], message.get("reasoning_content") or "", calls):
                if found := self.special.search(text):
                    raise Unfit(f"message {turn + 1}: holds the special token {found[0]}")
            if message.get("tool_calls") and "tool_calls" not in str(self.tokenizer.chat_template):
                raise Unfit(f"message {turn + 1}: the chat template knows no tool calls")
        if chat.tools is not None and "tools" not in str(self.tokenizer.chat_template):
            raise Unfit("the chat template knows no tools")


def _rest(prompt: str, whole: str, message: Message) -> str | None:
    """The answer where the template begins one that is to come with a thought, or with none, and does not write that
    into one that is there. None where the two cannot agree."""
    if (none := NO_THOUGHT.search(prompt)) and whole.startswith(prompt[: none.start()]):
        rest = whole[none.start() :]
        return None if "</think>" in rest else rest
    if (opened := OPEN_THOUGHT.search(prompt)) and whole.startswith(prompt[: opened.start()]):
        rest = whole[opened.start() :]
        return rest.removeprefix("<think>").lstrip() if rest.startswith("<think>") else _with_thought(rest, message)
    return None


def _with_thought(rest: str, message: Message) -> str | None:
    """An answer that the template writes without its thought, after a prompt that begins one. None if it has none."""
    content = message["content"]
    if thought := (message.get("reasoning_content") or "").strip():
        content = f"{thought}\n</think>\n\n{content}"
    thought, closed, said = content.rpartition("</think>")
    written = rest.lstrip()
    if not closed or not written.startswith(said.strip()):
        return None
    return thought.rpartition("<think>")[2].lstrip() + closed + said.rstrip() + written[len(said.strip()) :]


def _disagreement(prompt: str) -> str:
    if NO_THOUGHT.search(prompt):
        return "has thoughts, and its prompt says that there are none (enable_thinking)"
    if OPEN_THOUGHT.search(prompt):
        return "has no thoughts, and its prompt begins with one (enable_thinking)"
    return "the chat template begins it otherwise than its prompt at inference"


def _lost(message: Message, rest: str) -> str | None:
    """What of an answer the template's text has not."""
    thought = (message.get("reasoning_content") or "").strip()
    if thought not in rest or ("</think>" in message["content"] and "</think>" not in rest):
        return "thoughts"
    names = [call.get("function", call)["name"] for call in message.get("tool_calls") or ()]
    return "tool calls" if any(name not in rest for name in names) else None
