"""LiveCodeBench v6: contests from 2025-02-01 on. {"question_content", "starter_code", "contest_date", "question_id",
"public_test_cases", "private_test_cases", "metadata", "difficulty"} a row; its parts are the difficulties.

A program has to pass every public and private test within 6 seconds each. All of these contests are in the part that
release v6 added (test6.jsonl), which is what is fetched.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipo.errors import UsageError, first_line
from pipo.tasks.code import Case, Suite, last_program, passes, sandbox
from pipo.tasks.question import Question
from pipo.tasks.rows import Hub, Row, text

HUB = Hub("livecodebench/code_generation_lite", file="test6.jsonl")
SINCE = "2025-02-01"
LARGEST = 512 * 2**20  # bytes of a row's private tests, unpacked
PROMPT = "Write a correct and efficient Python program for the problem below."
READ = "It reads the input from stdin and prints the answer to stdout. Do not test it on the examples."
COMPLETE = "Complete the starter code below."
FENCED = "Put the whole program in one Python code block:"


@dataclass(frozen=True)
class PackedCases:
    """A row's tests, unpacked only while they are used: together they are far larger than the questions."""

    public: str
    private: str

    def __iter__(self) -> Iterator[Case]:
        for case in (*unpack(self.public), *unpack(self.private)):
            yield Case(str(case["input"]), str(case["output"]))


def question(task: str, index: int, where: str, row: Row) -> Question | None:
    """None for a contest before SINCE."""
    if str(row.get("contest_date", ""))[:10] < SINCE:
        return None
    starter = str(row.get("starter_code") or "").strip()
    block = f"```python\n{starter or '# your program'}\n```"
    rules = COMPLETE if starter else READ
    content = f"{PROMPT}\n\n{text(where, row, 'question_content').strip()}\n\n{rules} {FENCED}\n{block}"
    tests = Suite(_cases(where, row), _function(where, row) if starter else None)
    asked = [{"role": "user", "content": content}]
    return Question(
        text(where, row, "question_id"), task, row.get("difficulty"), asked, "passes the tests", tests=tests
    )


def score(output: str, question: Question) -> tuple[str | None, bool]:
    """The last Python block of `output`, and whether it passes every test."""
    sandbox()  # says so where there is none, before anything is generated
    program = last_program(output)
    if program is None:
        return None, False
    assert isinstance(question.tests, Suite)
    return program.source, passes(program, question.tests)


def _cases(where: str, row: Row) -> PackedCases:
    cases = PackedCases(str(row.get("public_test_cases") or "[]"), str(row.get("private_test_cases") or "[]"))
    try:
        empty = next(iter(cases), None) is None
    except (ValueError, KeyError, TypeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        field = f"{where} private_test_cases"
        raise UsageError(field, f"cannot be unpacked ({first_line(error)})", "give the data set's form") from None
    if empty:
        raise UsageError(f"{where} public_test_cases", "holds no test", "give the data set's form")
    return cases


def _function(where: str, row: Row) -> str:
    try:
        name = json.loads(row["metadata"])["func_name"]
    except (KeyError, TypeError, ValueError):
        name = ""
    if not str(name).isidentifier():
        raise UsageError(f"{where} metadata", "names no function for the starter code", 'add "func_name"')
    return str(name)


def unpack(packed: str) -> list[dict[str, Any]]:
    """Tests from JSON, or from base64 of zlib of a pickled JSON string; pickles of anything else are refused."""
    if not packed.lstrip().startswith("["):
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed), LARGEST)
        if inflate.unconsumed_tail:
            raise ValueError("too large")
        packed = _Strings(io.BytesIO(data)).load()
    found = json.loads(packed)
    if not isinstance(found, list) or not all(isinstance(case, dict) for case in found):
        raise ValueError("no list of tests")
    return found


class _Strings(pickle.Unpickler):
    """Loads plain values alone: nothing is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
