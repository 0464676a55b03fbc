"""Evaluation tasks, one module each, and `load`, which finds one by what the user typed."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

from pipo.errors import UsageError
from pipo.tasks.question import Question, Score, Task
from pipo.tasks.rows import Rows, file_rows, hub_rows

__all__ = ["TASKS", "Question", "Score", "Task", "load"]

GENERATED = ("smollm2_mix", "gsm_symbolic")
BENCHMARKS = {
    "aime2025": "aime2025",
    "math500": "math500",
    "gsm8k": "gsm8k",
    "gpqa_diamond": "gpqa_diamond",
    "livecodebench_v6": "livecodebench_v6",
    "longbench_v2": "longbench_v2",
    "longbench_v2_medium": "longbench_v2",
    "longbench_v2_long": "longbench_v2",
}
"""Name -> module. Their rows come from the hub, or from a file of the same schema."""
TASKS = (*GENERATED, *BENCHMARKS)


def load(spec: str, n: int | None, seed: int) -> Task:
    """The task that `NAME`, `NAME=FILE` or a `.jsonl` path names, with at most `n` questions (None: as many as it has).

    `seed` chooses the questions of generated tasks; the others are taken from their beginning.
    """
    if spec.endswith(".jsonl") and "=" not in spec:
        return _from_rows(Path(spec).stem, "chat_jsonl", file_rows(Path(spec)), n)
    name, _, file = spec.partition("=")
    if name not in TASKS:
        raise UsageError("task", f"unknown task {name!r}", _valid_names(name))
    if name in BENCHMARKS:
        module = BENCHMARKS[name]
        hub = import_module(f"pipo.tasks.{module}").HUB
        rows = file_rows(Path(file)) if file else hub_rows(hub, f"write {name}=FILE with a local copy")
        return _from_rows(name, module, rows, n)
    if file:
        raise UsageError("task", f"{name} is generated and takes no file", f"write {name}")
    generator = import_module(f"pipo.tasks.{name}")
    return Task(name, generator.questions(generator.SIZE if n is None else n, seed), generator.score)


def _from_rows(name: str, module_name: str, rows: Rows, n: int | None) -> Task:
    module = import_module(f"pipo.tasks.{module_name}")
    found: list[Question] = []
    for index, (where, row) in enumerate(rows):
        question = module.question(name, index, where, row)
        if question is not None:
            found.append(question)
        if len(found) == n:
            break
    if not found:
        raise UsageError("task", f"no row is of {name}", "use another file")
    return Task(name, found, module.score)


def _valid_names(name: str) -> str:
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}valid: {', '.join(TASKS)}, NAME=FILE or a .jsonl path"
