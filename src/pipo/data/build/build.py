"""`pipo data build`: questions, answers, checks, sets, one after the other, each going on where a kill stopped it.

Everything lies on disk, a line a finished piece; in memory are a few bytes a question and a sample, and the answers
that are being made or checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pipo.data.build.answerer import Order, ask
from pipo.data.build.card import write_card
from pipo.data.build.questions import Questions, check, write_questions
from pipo.data.build.recipe import BuildRecipe
from pipo.data.build.sets import ANSWERED, CHECKED, Results, write_sets
from pipo.errors import UsageError
from pipo.runtime.journal import Journal, claim
from pipo.runtime.progress import SampleProgress
from pipo.runtime.provenance import write_json, write_provenance
from pipo.tasks.code import sandbox
from pipo.tasks.question import sample_seed
from pipo.tasks.rows import Row
from pipo.tasks.thoughts import conclusion

MAY_CHANGE = {
    "output": True,
    "select": True,
    "teacher": {"endpoint", "api_key_env", "concurrency", "retries", "timeout", "batch_size", "dtype", "device"},
    "checks": {"workers"},
}
"""What a run may be gone on with differently."""


def build(recipe: BuildRecipe) -> dict[str, Any]:
    """Make, or go on with, the folder of a recipe; returns the statistics. Raises `UsageError`."""
    folder = Path(recipe.output)
    claim("output", folder, recipe.model_dump(exclude=MAY_CHANGE))  # type: ignore[arg-type]
    with Journal(folder / "answers.jsonl", "output") as answers, Journal(folder / "checks.jsonl", "output") as checks:
        if not (folder / "questions.jsonl").exists():
            write_questions(recipe.questions, folder / "questions.jsonl")
        questions = Questions(folder / "questions.jsonl")
        runs_code = "tests" in questions[0]
        protection = sandbox().protection if runs_code else None
        results = Results(len(questions), recipe.answers.samples)
        for row in _rows(answers):
            results.answered(row)
        for row in _rows(checks):
            results.checked(row)
        _answer(recipe, questions, answers, results)
        if not results.count(ANSWERED):
            raise UsageError("teacher", "answered nothing", "see the log")
        _check(recipe, questions, answers, checks, results)
        statistics = write_sets(folder, questions, answers.lines(), results, recipe.select)
    statistics["skipped"] = json.loads((folder / "skipped.json").read_text())
    write_json(folder / "statistics.json", statistics)
    write_card(folder, recipe, statistics, protection)
    write_provenance(folder, recipe=recipe.model_dump(), sandbox=protection)
    return statistics


def _rows(journal: Journal) -> Iterator[Row]:
    for number, line in journal.lines():
        try:
            yield json.loads(line)
        except ValueError:
            raise UsageError(f"{journal.path}:{number}", "is not JSON", "remove the line, it is made again") from None


def _answer(recipe: BuildRecipe, questions: Questions, answers: Journal, results: Results) -> None:
    """Make the answers that are missing."""
    missing = len(results.flags) - results.count(ANSWERED)
    with SampleProgress(len(results.flags), len(results.flags) - missing) as progress:

        def put(rows: list[Row]) -> None:
            answers.append(rows)
            for row in rows:
                results.answered(row)
            progress.advance(len(rows), "answers")

        if missing:
            ask(recipe, _orders(recipe, questions, results), put)


def _orders(recipe: BuildRecipe, questions: Questions, results: Results) -> Iterator[Order]:
    before = bytes(results.flags)  # those that are made meanwhile were ordered already
    for index, question in enumerate(questions):
        for sample in range(recipe.answers.samples):
            if not before[index * recipe.answers.samples + sample] & ANSWERED:
                seed = sample_seed(recipe.seed, question["id"], sample)
                yield Order(index, sample, seed, question["messages"])


def _check(recipe: BuildRecipe, questions: Questions, answers: Journal, checks: Journal, results: Results) -> None:
    """Check the answers that are not, several at a time."""
    total = results.count(ANSWERED)
    running: set[Future[Row]] = set()
    with (
        ThreadPoolExecutor(recipe.checks.workers) as pool,
        SampleProgress(total, total - _unchecked(results)) as progress,
    ):

        def put(most: int) -> None:
            """Write down what is done, until at most `most` are running."""
            while len(running) > most:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                running.difference_update(done)
                rows = [future.result() for future in done]
                checks.append(rows)
                for row in rows:
                    results.checked(row)
                progress.advance(len(rows), "checks")

        for row in _rows(answers) if _unchecked(results) else ():
            if not results.flags[results.place(row)] & CHECKED:
                running.add(pool.submit(_verdict, recipe, questions, row))
                put(2 * recipe.checks.workers)
        put(0)


def _unchecked(results: Results) -> int:
    return sum(flags & (ANSWERED | CHECKED) == ANSWERED for flags in results.flags)


def _verdict(recipe: BuildRecipe, questions: Questions, row: Row) -> Row:
    """A line of checks.jsonl."""
    answer, correct = None, False
    if row["finish_reason"] == "stop":
        answer, correct = check(questions[row["question"]], conclusion(row["text"]), recipe.checks)
    return {"question": row["question"], "sample": row["sample"], "correct": correct, "answer": answer}
