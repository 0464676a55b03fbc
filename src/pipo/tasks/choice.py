"""Multiple choice: the question with its lettered choices, and a score by the letter in the last box."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipo.tasks.boxed import TAIL, last_box
from pipo.tasks.question import Question

PROMPT = "Answer the multiple-choice question. Put the letter of the right choice, and nothing else, in \\boxed{}."
LETTERS = "ABCD"
WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|bf|rm)\s*\{([^{}]*)\}")
LETTER = re.compile(r"\(?([A-D])\)?(?:[.:,)](?:\s.*)?)?", re.DOTALL)  # B, (B), B), B. and "B) its text"


def asked(question: str, choices: Sequence[str]) -> str:
    """The text that asks `question`, its choices as `A) ...`."""
    lines = [f"{letter}) {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([f"{PROMPT}\n\n{question.strip()}\n", *lines])


def score(text: str, question: Question) -> tuple[str | None, bool]:
    """The letter in the last box near the end: (letter, or what the box holds, or None; equal to the gold)."""
    box = last_box(text[-TAIL:])
    if box is None:
        return None, False
    plain = WRAPPED.sub(r"\1", WRAPPED.sub(r"\1", box)).replace("$", "").strip()
    match = LETTER.fullmatch(plain)
    return (match[1] if match else box), match is not None and match[1] == question.answer
