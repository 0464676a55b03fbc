"""What became of every sample, in a few bytes each, and the two training sets that are chosen by it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import IO, Any

from pipo.data.build.questions import Questions
from pipo.data.build.recipe import Selection
from pipo.tasks.rows import Row

ANSWERED, FINISHED, CHECKED, CORRECT = 1, 2, 4, 8


class Results:
    """Flags and lengths of `questions` x `samples` answers."""

    def __init__(self, questions: int, samples: int) -> None:
        self.questions, self.samples = questions, samples
        self.flags = bytearray(questions * samples)
        self.tokens = array("I", bytes(4 * questions * samples))

    def place(self, row: Row) -> int:
        return int(row["question"]) * self.samples + int(row["sample"])

    def answered(self, row: Row) -> None:
        place = self.place(row)
        self.flags[place] |= ANSWERED | (FINISHED if row["finish_reason"] == "stop" else 0)
        self.tokens[place] = row["completion_tokens"]

    def checked(self, row: Row) -> None:
        self.flags[self.place(row)] |= CHECKED | (CORRECT if row["correct"] else 0)

    def good(self, question: int) -> list[int]:
        """The places of a question's correct answers; unfinished ones are never correct."""
        return [place for place in self._places(question) if self.flags[place] & CORRECT]

    def accuracy(self, question: int) -> float | None:
        """The share of a question's answers that are correct, None without one."""
        made = sum(self.flags[place] & ANSWERED > 0 for place in self._places(question))
        return len(self.good(question)) / made if made else None

    def count(self, flag: int) -> int:
        return sum(flags & flag > 0 for flags in self.flags)

    def _places(self, question: int) -> range:
        return range(question * self.samples, (question + 1) * self.samples)


def write_sets(
    folder: Path, questions: Questions, answers: Iterator[tuple[int, bytes]], results: Results, select: Selection
) -> dict[str, Any]:
    """Write sft.jsonl and opd.jsonl, each whole or not at all; returns the statistics."""
    first = round(len(questions) * select.share)  # of the prompts
    chosen = bytearray(len(results.flags))
    for index in range(first):
        good = results.good(index)
        if good and select.sft == "shortest":
            good = [min(good, key=lambda place: results.tokens[place])]
        for place in good:
            chosen[place] = 1
    with _whole(folder / "sft.jsonl") as sft:
        for _, line in answers:
            row = json.loads(line)
            if chosen[results.place(row)]:
                question = questions[row["question"]]
                reply = {"role": "assistant", "content": row["text"]}
                _write(sft, question["id"], [*question["messages"], reply], sample=row["sample"])
    prompts = 0
    with _whole(folder / "opd.jsonl") as opd:
        for index in range(first, len(questions)):
            accuracy = results.accuracy(index)
            if accuracy is not None and accuracy >= select.min_accuracy:
                question = questions[index]
                _write(opd, question["id"], question["messages"], teacher_accuracy=accuracy)
                prompts += 1
    return _statistics(results, first, chosen) | {"opd": {"questions": len(questions) - first, "prompts": prompts}}


def _write(file: IO[str], name: str, messages: list[dict[str, str]], **facts: Any) -> None:
    file.write(json.dumps({"id": name, **facts, "messages": messages}, ensure_ascii=False) + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that appears under its name when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="replace") as file:
        yield file
    partial.replace(path)


def _statistics(results: Results, first: int, chosen: bytearray) -> dict[str, Any]:
    lengths = array("I", (results.tokens[place] for place in range(len(chosen)) if chosen[place]))
    accuracies = [accuracy for i in range(results.questions) if (accuracy := results.accuracy(i)) is not None]
    made = results.count(ANSWERED)
    return {
        "questions": results.questions,
        "answers": {
            "asked": len(results.flags),
            "made": made,
            "finished": results.count(FINISHED),
            "correct": results.count(CORRECT),
            "teacher_accuracy": fmean(accuracies) if accuracies else None,
            "questions_without_a_correct_one": sum(accuracy == 0 for accuracy in accuracies),
        },
        "sft": {
            "questions": first,
            "covered": sum(any(chosen[i * results.samples : (i + 1) * results.samples]) for i in range(first)),
            "trajectories": len(lengths),
            "tokens": sum(lengths),
            "tokens_mean": fmean(lengths) if lengths else None,
            "tokens_median": median(lengths) if lengths else None,
            "tokens_sd": pstdev(lengths) if lengths else None,
            "tokens_longest": max(lengths, default=None),
        },
    }
