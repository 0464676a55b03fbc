"""Programming: the program in an answer, and a score by running it on tests in the sandbox (`pipo.runtime.sandbox`)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from pipo.errors import UsageError
from pipo.runtime.sandbox import Limits, Sandbox, best

log = logging.getLogger("pipo")
MIB = 2**20
FENCE = re.compile(r"^ {0,3}```+[ \t]*([A-Za-z0-9+#]*)[^\n]*$", re.MULTILINE)
LANGUAGES = {"": "python", "python": "python", "python3": "python", "py": "python", "cpp": "cpp", "c++": "cpp"}
COMPILE = "g++ -std=c++17 -O2 -o $TMPDIR/main main.cpp 1>&2 && cat $TMPDIR/main"
COMPILE_LIMITS = Limits(seconds=30, file_size=64 * MIB, output=32 * MIB)
IMPORTS = """import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
sys.setrecursionlimit(50_000)
"""
"""What solutions on LeetCode may take for granted."""
CALL = """
import json as _json, os as _os
_answers = _os.dup(1)
_os.dup2(2, 1)  # what the solution prints is no answer
_arguments = [_json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
_names = {name: value for name, value in globals().items() if name[0] != "_"} | {"__name__": "solution"}
exec(compile(open("solution.py").read(), "solution.py", "exec"), _names)
_function = getattr(_names["Solution"](), NAME) if "Solution" in _names else _names[NAME]
_result = _json.dumps(_function(*_arguments))
with open(_answers, "w") as _file:
    _file.write(_result)
"""


@dataclass(frozen=True)
class Case:
    """One test: stdin and expected stdout, or the arguments (JSON, one a line) and the expected value (JSON)."""

    input: str
    output: str


@dataclass(frozen=True)
class Suite:
    """What a program is run on. With `function`, that function (or method of `Solution`) is called."""

    cases: Iterable[Case]
    function: str | None = None
    checker: str | None = None  # a Python program: (input, expected, given: file names) -> prints a number, 1 is right
    limits: Limits = Limits()


@dataclass(frozen=True)
class Program:
    """Source text in "python" or "cpp"."""

    language: str
    source: str


@cache
def sandbox() -> Sandbox:
    """The strongest that this machine has; it says which. Raises `UsageError`."""
    try:
        found = best()
    except RuntimeError as error:
        raise UsageError("sandbox", str(error).partition(":")[0], str(error).partition(": ")[2]) from None
    log.log(logging.WARNING if found.kind == "rlimits" else logging.INFO, "code runs in %s", found.protection)
    return found


def last_program(text: str, languages: Sequence[str] = ("python",)) -> Program | None:
    """The last closed code fence of `text` in one of `languages`; a fence without a name is in the first of them."""
    found, start, tag = None, None, ""
    for fence in FENCE.finditer(text):
        if start is None or fence[1]:  # a fence with a name opens, also where one was left open
            start, tag = fence.end() + 1, fence[1].lower()
            continue
        language = LANGUAGES.get(tag) if tag else languages[0]
        if language in languages:
            found = Program(str(language), text[start : fence.start()])
        start = None
    return found


def passes(program: Program, tests: Suite) -> bool:
    """Whether there are tests and the program answers all of them rightly; after the first failure it is not run."""
    command, files = _prepared(program, tests)
    verdict = False
    for case in tests.cases if command else ():
        verdict = _passes(command, files, case, tests)
        if not verdict:
            break
    return verdict


def _prepared(program: Program, tests: Suite) -> tuple[list[str], dict[str, bytes]]:
    """The command that runs the program, and its files; an empty command where it does not compile."""
    source = program.source.encode("utf-8", "replace")
    if program.language == "cpp":
        compiled = sandbox().run(["sh", "-c", COMPILE], {"main.cpp": source}, limits=COMPILE_LIMITS)
        return ["./main"] if compiled.ok else [], {"main": compiled.stdout}
    if tests.function is None:
        return ["python", "main.py"], {"main.py": source}
    harness = f"{IMPORTS}\nNAME = {tests.function!r}\n{CALL}"
    return ["python", "harness.py"], {"solution.py": source, "harness.py": harness.encode()}


def _passes(command: list[str], files: dict[str, bytes], case: Case, tests: Suite) -> bool:
    given = sandbox().run(command, files, case.input.encode(), tests.limits)
    if not given.ok:
        return False
    if tests.checker is not None:
        return _checked(tests.checker, case, given.stdout)
    output = given.stdout.decode("utf-8", "replace")
    return same_value(output, case.output) if tests.function is not None else same_output(output, case.output)


def _checked(checker: str, case: Case, given: bytes) -> bool:
    files = {"input.txt": case.input.encode(), "expected.txt": case.output.encode(), "given.txt": given}
    program = {"checker.py": checker.encode()} | files
    verdict = sandbox().run(["python", "checker.py", *files], program, limits=Limits(seconds=10))
    return verdict.ok and verdict.stdout.strip() in (b"1", b"1.0", b"True")


def same_output(given: str, expected: str) -> bool:
    """Line by line, spaces around a line left out; numbers of a line may be written differently (1.50 for 1.5)."""
    lines, others = ([line.strip() for line in text.strip().split("\n")] for text in (given, expected))
    return len(lines) == len(others) and all(map(_same_line, lines, others))


def _same_line(given: str, expected: str) -> bool:
    if given == expected:
        return True
    words, others = given.split(), expected.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    try:
        return len(given) <= 1000 and Decimal(given) == Decimal(expected)
    except InvalidOperation:
        return False


def same_value(given: str, expected: str) -> bool:
    """Equal as JSON values; an unreadable value is equal to nothing."""
    try:
        values: list[Any] = [json.loads(text) for text in (given, expected)]
    except (ValueError, RecursionError):
        return False
    return bool(values[0] == values[1])
