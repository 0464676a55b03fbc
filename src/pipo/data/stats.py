"""`pipo data`: what is in chat and prompt JSONL files, and which of their lines are no good."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipo.data.chat import Chat, Problem, has_answer, read_chats, render, tokenize_chat
from pipo.data.layout import Pads, lay_out


@dataclass
class Stats:
    """Counts over all files. The token lists hold one entry a good line, and are empty without a tokenizer."""

    chats: int = 0  # lines with an answer, to train on
    prompts: int = 0  # lines without
    turns: int = 0
    answers: int = 0
    problems: list[Problem] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    pads: list[int] = field(default_factory=list)  # that fill up prompts and answers of odd length
    training_pads: list[int] = field(default_factory=list)  # the same with a recipe's default rejections

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it; the token statistics are None without a tokenizer."""
        return {
            "chats": self.chats,
            "prompts": self.prompts,
            "turns": self.turns,
            "answers": self.answers,
            "problems": [{"file": p.file, "line": p.line, "reason": p.reason} for p in self.problems],
            "tokens": self._lengths() if self.tokens else None,
        }

    def _lengths(self) -> dict[str, Any]:
        tokens, pads, training = sum(self.tokens), sum(self.pads), sum(self.training_pads)
        return {
            "total": tokens,
            "targets": sum(self.targets),
            "mean": tokens / len(self.tokens),
            "median": statistics.median(self.tokens),
            "longest": max(self.tokens),
            "pairs": sum(self.pairs),
            "pads": pads,
            "pad_share": pads / (tokens + pads),
            "training_pads": training,
            "training_pad_share": training / (tokens + training),
        }


def collect(files: Sequence[str], tokenizer: Any = None) -> Stats:
    """Read every line of every file. Raises `UsageError` for a file that cannot be read."""
    stats = Stats()
    for file in files:
        for number, chat in read_chats(file, answered=False, field="FILE"):
            problem = chat if isinstance(chat, Problem) else _count(stats, chat, tokenizer)
            if problem is not None:
                stats.problems.append(problem if isinstance(problem, Problem) else Problem(file, number, problem))
    return stats


def _count(stats: Stats, messages: Chat, tokenizer: Any) -> str | None:
    """Add one good line; returns what the tokenizer's template finds wrong with it."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if tokenizer is not None:
        try:
            _count_tokens(stats, messages, tokenizer, has_answer(messages))
        except ValueError as error:
            return str(error)
    stats.chats += answers > 0
    stats.prompts += answers == 0
    stats.turns += len(messages)
    stats.answers += answers
    return None


def _count_tokens(stats: Stats, messages: Chat, tokenizer: Any, answered: bool) -> None:
    if not answered:
        text = render(tokenizer, messages, add_generation_prompt=True)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        odd = length % 2
        _add(stats, length, targets=0, pairs=(length + odd) // 2, pads=odd, training_pads=odd)
        return
    item, pad, defaults = tokenize_chat(tokenizer, messages), -1, Pads()
    rng = random.Random(len(stats.tokens))
    plain = lay_out(item.ids, item.labels, pad)
    trained = lay_out(item.ids, item.labels, pad, defaults.scheme, rng.uniform(0, defaults.max_ratio), rng)
    _add(
        stats,
        len(item.ids),
        targets=sum(label >= 0 for label in item.labels),
        pairs=len(plain.ids) // 2,
        pads=plain.ids.count(pad),
        training_pads=trained.ids.count(pad),
    )


def _add(stats: Stats, tokens: int, **counts: int) -> None:
    stats.tokens.append(tokens)
    for name, count in counts.items():
        getattr(stats, name).append(count)
