"""The benchmarks: their schemas (made-up rows), prompts, scores on right, wrong and hostile answers, the hub."""

from __future__ import annotations

import base64
import csv
import json
import pickle
import sys
import time
import zlib
from pathlib import Path

import pytest

from pipo.errors import UsageError
from pipo.runtime import sandbox
from pipo.tasks import boxed, choice, code, load
from pipo.tasks.code import Case, Program, Suite, last_program, passes, same_output, same_value
from pipo.tasks.livecodebench_v6 import unpack
from pipo.tasks.question import Question
from pipo.tasks.rows import file_rows

GPQA = [
    {
        "Question": f"Which planet is number {i}?",
        "Correct Answer": f"planet {i}\n",
        "Incorrect Answer 1": "the Moon",
        "Incorrect Answer 2": "the Sun",
        "Incorrect Answer 3": "a comet",
        "Record ID": f"rec{i}",
        "High-level domain": "Physics",
    }
    for i in range(8)
]
LONG = [
    {
        "_id": f"{length}{i}",
        "domain": "Made-up QA",
        "length": length,
        "question": "Who wrote it?",
        "choice_A": "Ann",
        "choice_B": "Bob",
        "choice_C": "Cy",
        "choice_D": "Di",
        "answer": "C",
        "context": "It was written by Cy. " * 9,
    }
    for i, length in enumerate(["long", "short", "medium", "short"])
]
MATH = [{"problem": "Half of 1?", "answer": "\\frac{1}{2}", "subject": "Algebra", "unique_id": "test/algebra/1.json"}]


def packed(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def coding(**changes: object) -> dict[str, object]:
    row = {
        "question_id": "abc_1",
        "question_content": "Print the sum of two numbers.",
        "starter_code": "",
        "contest_date": "2025-03-01T00:00:00",
        "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": packed([{"input": "20 22\n", "output": "42\n", "testtype": "stdin"}]),
        "metadata": "{}",
    }
    return row | changes


STARTER = "class Solution:\n    def twice(self, values: List[int]) -> List[int]:\n        "
CALLED = {
    "question_id": "lc_1",
    "starter_code": STARTER,
    "metadata": json.dumps({"func_name": "twice"}),
    "public_test_cases": json.dumps([{"input": "[1, 2]", "output": "[2, 4]", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[]", "output": "[]", "testtype": "functional"}]),
}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def no_waiting():
    """Code runs here, or the test is skipped."""
    if not any(sandbox.works(kind) for kind in sandbox.KINDS):
        pytest.skip("no sandbox works on this machine")


def fenced(source: str, tag: str = "python") -> str:
    return f"Thus:\n```{tag}\n{source}\n```\nDone."


def test_gpqa_shuffles_its_choices_by_row(tmp_path):
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, GPQA[0].keys())
        writer.writeheader()
        writer.writerows(GPQA)
    task = load(f"gpqa_diamond={path}", None, seed=0)
    assert task == load(f"gpqa_diamond={path}", None, seed=5)
    assert [question.id for question in task.questions] == [f"rec{i}" for i in range(8)]
    assert len({question.answer for question in task.questions}) > 1
    for i, question in enumerate(task.questions):
        lines = question.messages[0]["content"].split("\n")
        assert f"{question.answer}) planet {i}" in lines and sum(line[1:3] == ") " for line in lines) == 4
        assert question.part == "Physics" and task.score(f"\\boxed{{{question.answer}}}", question)[1]
    assert load(f"gpqa_diamond={write(tmp_path / 'g.jsonl', GPQA)}", None, 0).questions == task.questions


def test_longbench_by_length(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(LONG))
    found = {
        name: load(f"{name}={path}", None, 0) for name in ("longbench_v2", "longbench_v2_medium", "longbench_v2_long")
    }
    ids = {name: [question.id for question in task.questions] for name, task in found.items()}
    assert list(ids.values()) == [["short1", "short3"], ["medium2"], ["long0"]]
    asked = found["longbench_v2"].questions[0].messages[0]["content"]
    assert asked.index("written by Cy") < asked.index("Who wrote it?") < asked.index("C) Cy")
    path.write_text(json.dumps([LONG[0] | {"length": "huge"}]))
    with pytest.raises(UsageError, match=r"\[0\] length: 'huge' is none of"):
        load(f"longbench_v2={path}", None, 0)
    with pytest.raises(UsageError, match="no row is of longbench_v2_long"):
        load(f"longbench_v2_long={write(tmp_path / 'short.jsonl', LONG[1:2])}", None, 0)


def test_math500(tmp_path):
    task = load(f"math500={write(tmp_path / 'm.jsonl', MATH)}", None, 0)
    (question,) = task.questions
    assert (question.id, question.part) == ("test/algebra/1.json", "Algebra")
    assert task.score("so \\boxed{0.5}", question)[1] and not task.score("so \\boxed{0.51}", question)[1]


def test_aime_in_the_hubs_schema(tmp_path):
    rows = [{"id": 0, "problem": "1 + 69?", "answer": "70"}]
    (question,) = load(f"aime2025={write(tmp_path / 'a.jsonl', rows)}", None, 0).questions
    assert (question.id, question.answer) == ("0", "70") and "1 + 69?" in question.messages[0]["content"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_livecodebench_takes_late_contests(tmp_path, suffix):
    rows = [coding(contest_date="2025-01-31T00:00:00"), coding(), coding(**CALLED)]
    path = write(tmp_path / "test6.jsonl", rows)
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="reads parquet")
        from pyarrow import Table

        path = tmp_path / "test6.parquet"
        parquet.write_table(Table.from_pylist(rows), path)
    task = load(f"livecodebench_v6={path}", None, 0)
    assert [question.id for question in task.questions] == ["abc_1", "lc_1"]
    first, second = (question.messages[0]["content"] for question in task.questions)
    assert "stdin" in first and "stdin" not in second and STARTER.strip() in second


@pytest.mark.parametrize(
    ("output", "correct"),
    [
        (fenced("print(sum(map(int, input().split())))"), True),
        (fenced("print(sum(map(int, input().split())))", ""), True),
        (fenced("print(1)") + fenced("a, b = map(int, input().split())\nprint(a + b, '\\n')"), True),
        (fenced("print(sum(map(int, input().split())))") + fenced("print(3)"), False),
        (fenced("print(3)"), False),  # passes the public test alone
        (fenced("print(sum(map(int, input().split())))", "java"), False),
        ("```python\nprint(sum(map(int, input().split())))\n", False),  # not closed
        ("", False),
    ],
)
@pytest.mark.usefixtures("no_waiting")
def test_programs_that_read_and_print(tmp_path, output, correct):
    task = load(f"livecodebench_v6={write(tmp_path / 'l.jsonl', [coding()])}", None, 0)
    answer, verdict = task.score(output, task.questions[0])
    assert verdict is correct and (answer is None) == (last_program(output) is None)


@pytest.mark.parametrize(
    ("source", "correct"),
    [
        (STARTER + "return [2 * value for value in values]", True),
        (STARTER + "print('noise'); return tuple(helper(v) for v in values)\ndef helper(x): return x * 2", True),
        ("def twice(values): return [v + v for v in values]", True),
        (STARTER + "return values", False),
        (STARTER + "return {1, 2}", False),
        (STARTER + "raise SystemExit(0)", False),
        ("print('[2, 4]')", False),
    ],
)
@pytest.mark.usefixtures("no_waiting")
def test_functions_that_are_called(tmp_path, source, correct):
    task = load(f"livecodebench_v6={write(tmp_path / 'l.jsonl', [coding(**CALLED)])}", None, 0)
    assert task.score(fenced(source), task.questions[0])[1] is correct


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"private_test_cases": "no base64!"}, "private_test_cases"),
        ({"private_test_cases": base64.b64encode(b"x").decode()}, "private_test_cases"),
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(print))).decode()}, "private_test_cases"),
        ({"private_test_cases": "[1]"}, "private_test_cases"),
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "public_test_cases"),
        ({"starter_code": STARTER}, "metadata"),
        ({"question_content": ""}, "question_content"),
    ],
)
def test_bad_rows_of_tests_are_named(tmp_path, changes, field):
    path = write(tmp_path / "l.jsonl", [coding(**changes)])
    with pytest.raises(UsageError) as caught:
        load(f"livecodebench_v6={path}", None, 0)
    assert f"{path}:1 {field}" in str(caught.value) and "\n" not in str(caught.value)


def test_packed_tests_run_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    with pytest.raises(pickle.UnpicklingError, match=r"builtins.print is not allowed"):
        unpack(base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode())


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (fenced("a = 1"), Program("python", "a = 1\n")),
        (fenced("a") + fenced("b"), Program("python", "b\n")),
        ("```\nx\n```", Program("python", "x\n")),
        ("```json\n{}\n```", None),
        ("```python\na\n```python\nb\n```", Program("python", "b\n")),  # the first was left open
        (fenced("int main() {}", "cpp"), None),
        ("no code", None),
        ("```", None),
    ],
)
def test_last_program(text, program):
    assert last_program(text) == program


def test_programs_in_two_languages():
    both = fenced("print(1)") + fenced("int main() {}", "cpp")
    assert last_program(both, ("cpp", "python")) == Program("cpp", "int main() {}\n")
    assert last_program("```\nint x;\n```", ("cpp",)) == Program("cpp", "int x;\n")


@pytest.mark.usefixtures("no_waiting")
def test_cpp_is_compiled_in_the_sandbox():
    if not code.sandbox().run(["g++", "--version"], {}).ok:
        pytest.skip("no C++ compiler")
    tests = Suite([Case("2 3", "5"), Case("4 5", "9")])
    source = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
    assert passes(Program("cpp", source), tests)
    assert not passes(Program("cpp", source.replace("+", "-")), tests)
    assert not passes(Program("cpp", "int main() { nonsense }"), tests)


@pytest.mark.usefixtures("no_waiting")
def test_checkers_decide_where_several_answers_are_right():
    checker = (
        "import sys\nasked, expected, given = (open(name).read() for name in sys.argv[1:])\n"
        "print(int(sum(map(int, given.split())) == int(asked)))"
    )
    tests = Suite([Case("10", "5 5")], checker=checker)
    assert passes(Program("python", "print(3, 7)"), tests)
    assert not passes(Program("python", "print(3, 8)"), tests)
    assert not passes(Program("python", "print('x')"), tests)  # the checker itself fails


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1 \n2  ", "1\n2", True),
        ("1.50 a", "1.5 a", True),
        ("1 2", "1\n2", False),
        ("1", "2", False),
        ("", "1", False),
        ("1e1000000000", "1", False),
        ("nan", "1", False),
        ("9" * 1_000_000, "9", False),
    ],
)
def test_same_output(given, expected, same):
    began = time.perf_counter()
    assert same_output(given, expected) is same
    assert time.perf_counter() - began < 5


def test_same_value():
    assert same_value("[1, [2.0]]", "[1, [2]]") and not same_value("[1]", "[2]")
    assert not same_value("", "1") and not same_value("[" * 100_000, "1")


def answered(letter: str) -> Question:
    return Question("0", "x", None, [], letter)


@pytest.mark.parametrize(
    ("output", "extracted", "correct"),
    [
        ("\\boxed{B}", "B", True),
        ("\\boxed{\\text{B}}", "B", True),
        ("\\boxed{\\textbf{(B)}}", "B", True),
        ("$\\boxed{\\mathrm{B}}$", "B", True),
        ("\\boxed{B) the text of it}", "B", True),
        ("\\boxed{B.}", "B", True),
        ("\\boxed{C}\nno:\n\\boxed{B}\nbecause\nof\nthis\nand\nthat", "B", True),
        ("\\boxed{A}", "A", False),
        ("\\boxed{Because}", "Because", False),
        ("\\boxed{AB}", "AB", False),
        ("\\boxed{E}", "E", False),
        ("\\boxed{}", "", False),
        ("B", None, False),
        ("\\boxed{" * 150_000, None, False),
        ("\\boxed{" * 200 + "B" + "}" * 200, "B", True),
        ("\\boxed{" + "\\text{" * 150 + "B" + "}" * 150 + "}", None, False),
        ("B" * 1_000_000, None, False),
    ],
)
def test_letters(output, extracted, correct):
    began = time.perf_counter()
    found, verdict = choice.score(output, answered("B"))
    assert verdict is correct and (found == extracted or len(output) > 500)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("output", ["```python\n" * 100_000, "`" * 1_000_000, "```\n" * 250_001, "\n" * 1_000_000])
def test_hostile_fences_take_bounded_time(output):
    began = time.perf_counter()
    last_program(output)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", ["aime2025", "math500", "gsm8k"])
def test_hostile_mathematics_is_wrong_in_bounded_time(tmp_path, name):
    rows = {"aime2025": {"id": "1", "problem": "?"}, "math500": {"problem": "?"}, "gsm8k": {"question": "?"}}[name]
    task = load(
        f"{name}={write(tmp_path / 'x.jsonl', [rows | {'answer': '#### 18' if name == 'gsm8k' else '18'}])}", 1, 0
    )
    began = time.perf_counter()
    assert not task.score("\\boxed{9^{9^{9^{9}}}}", task.questions[0])[1]
    assert not task.score("x" * 1_000_000 + "\\boxed{" * 50 + "17" + "}" * 50, task.questions[0])[1]
    assert time.perf_counter() - began < 2 * (boxed.SECONDS + 10)
    assert task.score("\\boxed{18}", task.questions[0])[1]


def test_without_the_hub_the_file_form_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("aime2025", "math500", "gsm8k", "gpqa_diamond", "longbench_v2"):
        with pytest.raises(UsageError) as caught:
            load(name, 1, 0)
        assert f"{name}=FILE" in str(caught.value) and "the extra hub" in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"cannot get livecodebench/.*livecodebench_v6=FILE") as caught:
        load("livecodebench_v6", 1, 0)
    assert "\n" not in str(caught.value)


def test_hub_ids_are_loaded_through_datasets(monkeypatch, tmp_path):
    """`datasets` takes a folder for a data set of the same name."""
    pytest.importorskip("datasets", reason="the hub's library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "math-ai" / "aime25"
    folder.mkdir(parents=True)
    write(folder / "test.jsonl", [{"id": "0", "problem": "1 + 69?", "answer": "70"}])
    assert [question.answer for question in load("aime2025", None, 0).questions] == ["70"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"cannot get HuggingFaceH4/MATH-500 .*math500=FILE"):
        load("math500", 1, 0)


def test_rows_of_a_file_are_read_one_by_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\nnot JSON\n')
    rows = file_rows(path)
    assert next(rows) == (f"{path}:1", {"a": 1})
    with pytest.raises(UsageError, match=r"x.jsonl:3: is not JSON"):
        next(rows)
