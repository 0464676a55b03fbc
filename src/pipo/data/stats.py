"""`pipo data`: what is in chat and prompt JSONL files, and which of their lines are no good."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipo.data.chat import Problem, read_chats
from pipo.data.examples import Examples
from pipo.data.layout import Pads, lay_out
from pipo.data.store import COUNTS, Store, counted, open_store
from pipo.pairing import IGNORE

PAD = -1  # no token


@dataclass
class Stats:
    """Counts over all files. The token lists hold an entry for every answer, its prompt with it, and for every prompt
    without one; they are empty without a tokenizer."""

    counts: Counter[str]  # COUNTS: lines with an answer, to train on; lines without; turns; answers among them
    problems: list[Problem]
    tokens: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    pads: list[int] = field(default_factory=list)  # that fill up prompts and answers of odd length
    training_pads: list[int] = field(default_factory=list)  # the same with a recipe's default rejections

    def add(self, tokens: int, targets: int, pairs: int, pads: int, training_pads: int) -> None:
        """An example."""
        for name, count in zip(
            ("tokens", "targets", "pairs", "pads", "training_pads"),
            (tokens, targets, pairs, pads, training_pads),
            strict=True,
        ):
            getattr(self, name).append(count)

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it; the token statistics are None without a tokenizer."""
        return {
            **{name: self.counts[name] for name in COUNTS},
            "problems": [{"file": p.file, "line": p.line, "reason": p.reason} for p in self.problems],
            "tokens": self._lengths() if self.tokens else None,
        }

    def _lengths(self) -> dict[str, Any]:
        tokens, pads, training = sum(self.tokens), sum(self.pads), sum(self.training_pads)
        return {
            "examples": len(self.tokens),
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


def collect(
    files: Sequence[str],
    tokenizer: Any = None,
    *,
    template: dict[str, Any] | None = None,
    workers: int | None = None,
) -> Stats:
    """Read every line of every file, with a tokenizer exactly as training does, whose cache is then filled.

    Raises `UsageError` for a file that cannot be read, and for a template that cannot be trained with.
    """
    if tokenizer is not None:
        return _of(open_store(files, Examples(tokenizer, template=template), workers=workers, field="FILE"))
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    for file in files:
        for _, chat in read_chats(file, answered=False, field="FILE"):
            if isinstance(chat, Problem):
                problems.append(chat)
            else:
                counts.update(counted(chat))
    return Stats(counts, problems)


def _of(store: Store) -> Stats:
    """The statistics of tokenized files: an answer's, with its prompt, and those of prompts alone."""
    stats, defaults = Stats(Counter(store.counts), store.problems), Pads()
    for row, start, stop, _ in store.answers:
        ids = store.row(int(row), int(stop))
        labels = [IGNORE] * int(start) + ids[start:]
        rng = random.Random(len(stats.tokens))
        plain = lay_out(ids, labels, PAD)
        trained = lay_out(ids, labels, PAD, defaults.scheme, rng.uniform(0, defaults.max_ratio), rng)
        stats.add(len(ids), int(stop - start), len(plain.ids) // 2, plain.ids.count(PAD), trained.ids.count(PAD))
    for length in store.lengths()[store.unanswered()].tolist():
        odd = length % 2
        stats.add(length, 0, (length + odd) // 2, odd, odd)
    return stats
