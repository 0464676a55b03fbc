"""The words shared by every task: a question, and a task as a list of questions with its score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipo.tasks.code import Suite


@dataclass(frozen=True)
class Question:
    """One question of a task. `messages` is a chat that ends with the user's turn."""

    id: str  # unique within the task
    task: str
    part: str | None  # part of a mixture, None elsewhere
    messages: list[dict[str, str]]
    answer: str  # gold
    solution: str | None = None  # worked solution, None where the task has none
    held_out: bool = False  # worded by a template that is never trained on
    tests: Suite | None = None  # of a program, where the answer is one


Score = Callable[[str, Question], tuple[str | None, bool]]
"""(model output, question) -> (extracted answer or None, correct). Takes bounded time on any text."""


@dataclass(frozen=True)
class Task:
    """Questions with the function that scores an output for each."""

    name: str
    questions: list[Question]
    score: Score


def sample_seed(seed: int, question_id: str, index: int) -> int:
    """The seed of one sample, the same for every method."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{question_id}/{index}".encode()).digest()[:6])
