"""Questions as they lie in questions.jsonl, whatever they came from.

Schemas of the sources, one object a row:

- math: {"question" | "messages", "answer"}
- code: {"question" | "messages", "tests": [{"input", "output"}], "language": "python" | "cpp", "function", "checker"}
- prompts: {"question" | "messages"}, asked as they are; nobody checks the answers
- dapo: {"prompt", "solution"} (open-r1/DAPO-Math-17k-Processed)
- codeforces: {"id", "prompt", "language", "official_tests", "generated_checker", "input_mode", "time_limit",
  "memory_limit"} (open-r1/codeforces, verifiable-prompts)
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipo.data.build.recipe import Checks, QuestionSource
from pipo.errors import UsageError
from pipo.runtime.provenance import write_json
from pipo.runtime.sandbox import Limits
from pipo.tasks import boxed
from pipo.tasks.chat_jsonl import messages
from pipo.tasks.code import Case, Suite, last_program, passes
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, file_rows, gold, hub_rows, text

LANGUAGES = ("python", "cpp")
FENCED = "Put the whole program in one code block."


class Skip(Exception):
    """A row that cannot be asked or checked, and why; it is counted."""


def write_questions(source: QuestionSource, path: Path) -> None:
    """Write questions.jsonl, whole or not at all, with the skipped rows counted in skipped.json."""
    skipped: Counter[str] = Counter()
    partial, count = path.with_name(f".{path.name}.partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for index, (where, row) in enumerate(_rows(source)):
            try:
                question = READERS[source.format](index, where, row)
            except Skip as reason:
                skipped[str(reason)] += 1
                continue
            file.write(json.dumps(question, ensure_ascii=False) + "\n")
            count += 1
            if count == source.limit:
                break
    if not count:
        reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
        raise UsageError("questions.source", f"{source.source} holds no usable question ({reasons})", "name another")
    write_json(path.with_name("skipped.json"), skipped)
    partial.replace(path)


def _rows(source: QuestionSource) -> Iterator[tuple[str, Row]]:
    path = Path(source.source)
    if path.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        return file_rows(path)
    hub = Hub(source.source, split=source.split, config=source.config)
    return hub_rows(hub, "set questions.source to a local file")


def _math(index: int, where: str, row: Row) -> Row:
    return {"id": str(row.get("id", index)), "messages": messages(where, row), "answer": gold(where, row)}


def _prompts(index: int, where: str, row: Row) -> Row:
    asked = messages(where, row) if "messages" in row else _user(text(where, row, "question"))
    return {"id": str(row.get("id", index)), "messages": asked}


def _dapo(index: int, where: str, row: Row) -> Row:
    asked = boxed.messages(text(where, row, "prompt"))
    return {"id": str(index), "messages": asked, "answer": gold(where, row, "solution")}


def _code(index: int, where: str, row: Row) -> Row:
    asked = messages(where, row) if "messages" in row else _user(f"{text(where, row, 'question')}\n\n{FENCED}")
    kept = {key: row[key] for key in ("function", "checker") if row.get(key)}
    language = str(row.get("language", "python"))
    if language not in LANGUAGES:
        raise UsageError(f"{where} language", f"{language!r} cannot be run", f"use {', '.join(LANGUAGES)}")
    tests = _tests(row.get("tests"))
    if not tests:
        raise UsageError(f"{where} tests", "holds no test", 'write [{"input": "...", "output": "..."}]')
    return {"id": str(row.get("id", index)), "messages": asked, "language": language, "tests": tests} | kept


def _codeforces(index: int, where: str, row: Row) -> Row:
    """Official tests; the data set's generated ones are a separate download and are not used."""
    language = str(row.get("language", "python"))
    if language not in LANGUAGES:
        raise Skip(f"language {language}")
    if row.get("input_mode") not in ("stdio", None):
        raise Skip(f"input mode {row['input_mode']}")
    tests = _tests(row.get("official_tests"))
    if not tests:
        raise Skip("no official tests")
    asked = _user(text(where, row, "prompt"))
    question = {"id": f"{row.get('id', index)}/{language}", "messages": asked, "language": language, "tests": tests}
    checker = {"checker": row["generated_checker"]} if row.get("generated_checker") else {}
    limits = {"seconds": row.get("time_limit"), "memory_mib": row.get("memory_limit")}
    return question | checker | {key: float(value) for key, value in limits.items() if value}


READERS = {"math": _math, "prompts": _prompts, "dapo": _dapo, "code": _code, "codeforces": _codeforces}


def _user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _tests(found: Any) -> list[dict[str, str]]:
    rows = found if isinstance(found, list) else []
    pairs = [(row.get("input"), row.get("output")) for row in rows if isinstance(row, dict)]
    return [
        {"input": given, "output": wanted} for given, wanted in pairs if isinstance(given, str) and wanted is not None
    ]


class Questions:
    """questions.jsonl: one by one, or any of them, with only their places in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places = array("Q", [0])
        with path.open("rb") as file:
            for line in file:
                self.places.append(self.places[-1] + len(line))

    def __len__(self) -> int:
        return len(self.places) - 1

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self.places[index])
            row: Row = json.loads(file.read(self.places[index + 1] - self.places[index]))
        return row

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


def check(question: Row, concluded: str, checks: Checks) -> tuple[str | None, bool]:
    """(what the answer gives, whether it is right): mathematics by value, programs by their tests, the rest unseen."""
    if "answer" in question:
        asked = Question(question["id"], "build", None, question["messages"], question["answer"])
        return boxed.score(concluded, asked)
    if "tests" not in question:
        return None, True
    program = last_program(concluded, (question["language"],))
    if program is None:
        return None, False
    memory = int(max(question.get("memory_mib", 0), checks.memory_mib)) * 2**20
    limits = Limits(seconds=question.get("seconds", checks.seconds), memory=memory)
    cases = [Case(test["input"], str(test["output"])) for test in question["tests"]]
    suite = Suite(cases, question.get("function"), question.get("checker"), limits)
    return program.source, passes(program, suite)
