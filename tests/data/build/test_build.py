"""`pipo data build`, with a teacher that is a small server in this process, or a tiny local model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from places import RUNS
from typer.testing import CliRunner

from pipo.data.build import questions as reading
from pipo.data.build.build import build
from pipo.data.build.recipe import BuildRecipe, QuestionSource, Selection
from pipo.data.build.sets import ANSWERED, CHECKED, CORRECT, FINISHED, Results, write_sets
from pipo.data.chat import Chat, read_chats
from pipo.errors import UsageError
from pipo.runtime import sandbox
from pipo.runtime.journal import Journal
from pipo.runtime.recipe import load_recipe
from pipo_cli.app import app


class Teacher(ThreadingHTTPServer):
    """Answers "what is N + M"; the fourth sample of a question is wrong, that of an odd N + M is cut off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()
        self.trouble: list[int] = []  # statuses to answer with first
        self.delay = 0.0
        self.seen: Counter[str] = Counter()
        self.parsed = False  # thoughts in a field of their own
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def reply(self, request: dict) -> dict:
        asked = request["messages"][-1]["content"]
        first, second = map(int, re.findall(r"\d+", asked)[-2:])
        self.seen[asked] += 1
        right = first + second
        wrong = self.seen[asked] == 4
        unfinished = wrong and right % 2 == 1
        content = f"\\boxed{{{right + wrong}}}"
        thought = "hm " * (10 + self.seen[asked])
        message = {"role": "assistant", "content": f"{thought}</think>\n{content}"}
        if self.parsed:
            message |= {"content": content, "reasoning_content": thought}
        choice = {"index": 0, "message": message, "finish_reason": "length" if unfinished else "stop"}
        usage = {"completion_tokens": len(thought), "prompt_tokens": 1, "total_tokens": 1}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "t", "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    server: Teacher

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
            status = self.server.trouble.pop() if self.server.trouble else 200
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.busy -= 1
            if status == 200:
                self.server.asked.append(body)
            reply = self.server.reply(body) if status == 200 else {"error": {"message": "no such field"}}
        if status == 0:
            self.connection.close()
            return
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def teacher():
    pytest.importorskip("openai", reason="the client of endpoints")
    server = Teacher()
    yield server
    server.shutdown()


@pytest.fixture
def recipe(tmp_path, teacher):
    source = tmp_path / "sums.jsonl"
    rows = [{"id": f"q{i}", "question": f"what is {i} + {i % 3}", "answer": i + i % 3} for i in range(10)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BuildRecipe(
        output=str(tmp_path / "out"),
        questions={"source": str(source)},
        teacher={"endpoint": teacher.endpoint, "model": "t", "concurrency": 3, "retries": 4},
        answers={"prefix": "<think>\n"},
    )


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_whole_build(recipe, teacher):
    statistics = build(recipe)
    out = Path(recipe.output)
    answers = rows(out / "answers.jsonl")
    assert len(answers) == 40 and teacher.most <= 3
    assert {(row["question"], row["sample"]) for row in answers} == {(q, s) for q in range(10) for s in range(4)}
    assert len({request["seed"] for request in teacher.asked}) == 40
    assert teacher.asked[0]["top_k"] == 20 and "chat_template_kwargs" not in teacher.asked[0]
    verdicts = rows(out / "checks.jsonl")
    assert sum(row["correct"] for row in verdicts) == 30 == len(verdicts) - 10
    sft = rows(out / "sft.jsonl")
    assert len(sft) == 27 and all(row["messages"][-1]["content"].startswith("<think>\nhm ") for row in sft)
    assert {row["id"] for row in sft} == {f"q{i}" for i in range(9)}
    (prompt,) = rows(out / "opd.jsonl")
    assert prompt["id"] == "q9" and prompt["teacher_accuracy"] == 0.75
    assert [message["role"] for message in prompt["messages"]] == ["user"]
    assert statistics["sft"]["trajectories"] == 27 and statistics["answers"]["teacher_accuracy"] == 0.75
    assert statistics["answers"]["finished"] == 40 - sum((i + i % 3) % 2 for i in range(10))
    assert all(isinstance(chat, Chat) for _, chat in read_chats(out / "sft.jsonl"))
    assert all(isinstance(chat, Chat) for _, chat in read_chats(out / "opd.jsonl", answered=False))
    card = (out / "README.md").read_text()
    assert "27 conversations over 9 questions" in card and "math-verify" in card
    assert json.loads((out / "provenance.json").read_text())["recipe"]["teacher"]["model"] == "t"


def test_shortest_and_thresholds_are_chosen_again_without_asking(recipe, teacher):
    build(recipe)
    asked = len(teacher.asked)
    lengths = {row["id"]: len(row["messages"][-1]["content"]) for row in rows(Path(recipe.output) / "sft.jsonl")}
    shortest = recipe.model_copy(update={"select": Selection(sft="shortest", min_accuracy=0.8)})
    statistics = build(shortest)
    sft = rows(Path(recipe.output) / "sft.jsonl")
    assert len(sft) == 9 and statistics["opd"]["prompts"] == 0 and len(teacher.asked) == asked
    assert all(len(row["messages"][-1]["content"]) <= lengths[row["id"]] for row in sft)


def test_thoughts_in_a_field_of_their_own(recipe, teacher):
    teacher.parsed = True
    recipe.answers.thinking = True
    build(recipe)
    text = rows(Path(recipe.output) / "sft.jsonl")[0]["messages"][-1]["content"]
    assert re.fullmatch(r"<think>\n(hm )+hm\n</think>\n\n\\boxed\{0\}", text)
    assert teacher.asked[0]["chat_template_kwargs"] == {"enable_thinking": True}


def test_passing_trouble_is_waited_out(recipe, teacher):
    teacher.trouble = [500, 429, 0, 503]
    assert build(recipe)["answers"]["made"] == 40
    assert len(teacher.asked) == 40  # nothing was made twice


def test_a_refused_question_is_left_for_the_next_run(recipe, teacher):
    teacher.trouble = [400]
    assert build(recipe)["answers"]["made"] == 39
    assert build(recipe)["answers"]["made"] == 40


def test_a_recipe_that_is_refused_altogether_stops(recipe, teacher):
    teacher.trouble = [400] * 100
    with pytest.raises(UsageError, match="teacher: .* refuses all: .*no such field"):
        build(recipe)
    assert len(teacher.trouble) > 70


def test_a_server_that_is_not_there_is_named(recipe):
    recipe.teacher.endpoint, recipe.teacher.retries = "http://127.0.0.1:9/v1", 0
    with pytest.raises(UsageError, match="teacher.endpoint: http://127.0.0.1:9/v1 failed"):
        build(recipe)


def test_a_killed_build_loses_no_finished_answer(recipe, teacher, tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe.model_dump(exclude_unset=True)))
    path = Path(recipe.output) / "answers.jsonl"
    teacher.delay = 0.1
    command = [sys.executable, "-m", "pipo_cli", "data", "build", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    while not path.exists() or path.read_bytes().count(b"\n") < 8:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    teacher.delay = 0
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    with path.open("ab") as file:
        file.write(b'{"question": 3, "samp')  # torn
    result = CliRunner().invoke(app, ["data", "build", "--config", str(config), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answers"]["made"] == 40
    assert path.read_bytes().startswith(kept)
    assert len(rows(path)) == len({(row["question"], row["sample"]) for row in rows(path)}) == 40
    assert len(teacher.asked) <= 40 + 3  # only those in flight were asked for again


def test_checks_go_on_too(recipe, tmp_path):
    build(recipe)
    out = Path(recipe.output)
    whole = {name: (out / name).read_text() for name in ("checks.jsonl", "sft.jsonl", "opd.jsonl")}
    (out / "checks.jsonl").write_text("".join(whole["checks.jsonl"].splitlines(keepends=True)[:11]) + '{"ques')
    build(recipe)
    key = lambda text: sorted(text.splitlines())  # noqa: E731
    assert all(key((out / name).read_text()) == key(text) for name, text in whole.items())


def test_a_folder_of_another_recipe_is_refused(recipe):
    build(recipe)
    recipe.teacher.concurrency = 5
    build(recipe)
    recipe.answers.temperature = 0.5
    with pytest.raises(UsageError, match="output: .* with answers "):
        build(recipe)


def test_two_builds_at_a_time_are_refused(recipe):
    build(recipe)
    path = Path(recipe.output) / "answers.jsonl"
    with Journal(path, "output"), pytest.raises(UsageError, match="another run is writing"):
        build(recipe)


def test_a_local_teacher(tiny_llama, tmp_path):
    source = tmp_path / "sums.jsonl"
    source.write_text("".join(json.dumps({"question": f"what is {i}", "answer": i}) + "\n" for i in range(4)))
    recipe = BuildRecipe(
        output=str(tmp_path / "out"),
        questions={"source": str(source)},
        teacher={"model": tiny_llama, "batch_size": 3, "device": "cpu"},
        answers={"samples": 2, "max_tokens": 5},
    )
    statistics = build(recipe)
    answers = rows(tmp_path / "out" / "answers.jsonl")
    assert len(answers) == 8 and all(0 < row["completion_tokens"] <= 5 for row in answers)
    assert statistics["sft"]["trajectories"] == 0  # a tiny random model is right about nothing
    alone = recipe.model_copy(deep=True, update={"output": str(tmp_path / "again")})
    alone.teacher.batch_size = 1
    build(alone)
    texts = {(row["question"], row["sample"]): row["text"] for row in rows(tmp_path / "again" / "answers.jsonl")}
    assert all(texts[row["question"], row["sample"]] == row["text"] for row in answers)


def test_prompts_are_asked_as_they_are_and_every_finished_answer_is_kept(tiny_llama, tmp_path):
    source = tmp_path / "prompts.jsonl"
    given = [{"question": f"tell me {i}"} for i in range(9)]
    given.append({"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "so?"}]})
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    recipe = BuildRecipe(
        output=str(tmp_path / "out"),
        questions={"source": str(source), "format": "prompts"},
        teacher={"model": tiny_llama, "device": "cpu"},
        answers={"samples": 20, "max_tokens": 40},
        select={"share": 0.8, "min_accuracy": 0.0},
    )
    statistics = build(recipe)
    out = tmp_path / "out"
    assert [row["messages"][-1]["content"] for row in rows(out / "questions.jsonl")][:2] == ["tell me 0", "tell me 1"]
    assert rows(out / "questions.jsonl")[9]["messages"] == given[9]["messages"]
    finished = [row for row in rows(out / "answers.jsonl") if row["finish_reason"] == "stop"]
    assert 0 < len(finished) < 200
    kept = [(row["id"], row["messages"][-1]["content"]) for row in rows(out / "sft.jsonl")]
    assert sorted(kept) == sorted((str(row["question"]), row["text"]) for row in finished if row["question"] < 8)
    assert [row["id"] for row in rows(out / "opd.jsonl")] == ["8", "9"]
    assert statistics["answers"]["correct"] == len(finished)
    assert "Nothing else was checked" in (out / "README.md").read_text()


CODE = {
    "id": "1/A",
    "prompt": "Print the sum.",
    "language": "python",
    "input_mode": "stdio",
    "time_limit": 2.0,
    "memory_limit": 256.0,
    "official_tests": [{"input": "1 2", "output": "3"}, {"input": "5 5", "output": "10"}],
    "generated_checker": None,
}


def test_programs_are_checked_in_the_sandbox(tmp_path):
    if not any(sandbox.works(kind) for kind in sandbox.KINDS):
        pytest.skip("no sandbox works on this machine")
    source = tmp_path / "problems.jsonl"
    others = [CODE | {"input_mode": "file"}, CODE | {"official_tests": []}, CODE | {"language": "rust"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in [CODE, *others]))
    reading.write_questions(QuestionSource(source=str(source), format="codeforces"), tmp_path / "questions.jsonl")
    skipped = json.loads((tmp_path / "skipped.json").read_text())
    assert skipped == {"input mode file": 1, "no official tests": 1, "language rust": 1}
    (question,) = reading.Questions(tmp_path / "questions.jsonl")
    checks = BuildRecipe(output="", questions={"source": ""}, teacher={"model": ""}).checks
    right = "```python\nprint(sum(map(int, input().split())))\n```"
    assert reading.check(question, right, checks)[1]
    assert not reading.check(question, right.replace("sum", "max"), checks)[1]
    assert reading.check(question, "no program", checks) == (None, False)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("math", {"question": "?"}, "1 answer: is missing"),
        ("prompts", {"prompt": "?"}, "1 question: is missing"),
        ("dapo", {"prompt": "?"}, "1 solution: is missing"),
        ("code", {"question": "?"}, "1 tests: holds no test"),
        ("code", {"question": "?", "language": "ada"}, "1 language: 'ada' cannot be run"),
        ("codeforces", CODE | {"official_tests": None}, "holds no usable question \\(1 no official tests\\)"),
    ],
)
def test_bad_questions_are_named(tmp_path, form, row, message):
    source = tmp_path / "x.jsonl"
    source.write_text(json.dumps(row))
    with pytest.raises(UsageError, match=message):
        reading.write_questions(QuestionSource(source=str(source), format=form), tmp_path / "questions.jsonl")
    assert not (tmp_path / "questions.jsonl").exists()


def test_memory_does_not_grow_with_the_answers(tmp_path):
    """The peak of choosing and writing sets, with 4 and with 40 MB of answers."""
    peaks = []
    for count in (200, 2000):
        folder = tmp_path / str(count)
        folder.mkdir()
        results = Results(count, 1)
        with (folder / "questions.jsonl").open("w") as file:
            for i in range(count):
                file.write(json.dumps({"id": str(i), "messages": [{"role": "user", "content": "?"}]}) + "\n")
        with (folder / "answers.jsonl").open("w") as file:
            for i in range(count):
                row = {
                    "question": i,
                    "sample": 0,
                    "text": "x" * 20_000,
                    "completion_tokens": 5,
                    "finish_reason": "stop",
                }
                file.write(json.dumps(row) + "\n")
                results.answered(row)
                results.checked(row | {"correct": True})
        tracemalloc.start()
        journal = Journal(folder / "answers.jsonl", "output")
        questions = reading.Questions(folder / "questions.jsonl")
        write_sets(folder, questions, journal.lines(), results, Selection())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        journal.file.close()
        assert (folder / "sft.jsonl").stat().st_size > 0.9 * count * 20_000
    assert peaks[1] < peaks[0] + 300 * 1800 and peaks[1] < 2_000_000  # a few bytes a question, no answers


def test_flags():
    results = Results(2, 2)
    results.answered({"question": 1, "sample": 0, "completion_tokens": 7, "finish_reason": "stop"})
    results.answered({"question": 1, "sample": 1, "completion_tokens": 9, "finish_reason": "length"})
    results.checked({"question": 1, "sample": 0, "correct": True})
    assert results.accuracy(0) is None and results.accuracy(1) == 0.5 and results.good(1) == [2]
    assert [results.count(flag) for flag in (ANSWERED, FINISHED, CHECKED, CORRECT)] == [2, 1, 1, 1]


@pytest.mark.parametrize("name", ["data_dapo_math", "data_codeforces"])
def test_the_papers_recipes_are_valid(name):
    recipe = load_recipe(BuildRecipe, str(RUNS / f"{name}.yaml"), [])
    assert recipe.answers.samples == 4 and recipe.select.share == 0.9 and recipe.select.min_accuracy == 0.5
    assert (recipe.answers.top_p, recipe.answers.top_k, recipe.answers.presence_penalty) == (0.95, 20, 1.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("answers.sample=2", "answers.sample: unknown key; did you mean 'samples'?"),
        ("select.share=1", "select.share: input should be less than 1"),
        ("teacher.batch_size=4", "teacher.batch_size: is an option of a local model"),
        ("questions.format=maths", "questions.format: input should be"),
    ],
)
def test_wrong_recipes_are_named(override, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(BuildRecipe, str(RUNS / "data_dapo_math.yaml"), [override])
    assert message in str(caught.value)


def test_a_file_called_build_is_still_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("build").write_text(json.dumps({"prompt": "how many"}))
    result = CliRunner().invoke(app, ["data", "./build"])
    assert result.exit_code == 0 and "1 prompts" in result.stdout
    result = CliRunner().invoke(app, ["data", "build", "--help"])
    assert result.exit_code == 0 and "--config" in result.stdout
    result = CliRunner().invoke(app, ["data", "build", "--config", "none.yaml"])
    assert result.exit_code == 2 and "no file none.yaml" in result.stderr
