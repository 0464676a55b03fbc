"""Evaluation tasks, one module each, and `load`, which finds one by what the user typed."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path

from pipo.errors import UsageError
from pipo.tasks.question import Question, Score, Task

__all__ = ["TASKS", "Question", "Score", "Task", "load"]

GENERATED = ("smollm2_mix", "gsm_symbolic")
FILES = ("gsm8k", "aime2025")
TASKS = GENERATED + FILES


def load(spec: str, n: int | None, seed: int) -> Task:
    """The task that `NAME`, `NAME=FILE` or a `.jsonl` path names, with at most `n` questions (None: as many as it has).

    `seed` chooses the questions of generated tasks; files are taken from their beginning.
    """
    if spec.endswith(".jsonl") and "=" not in spec:
        return _from_file("chat_jsonl", Path(spec), n, seed)
    name, _, file = spec.partition("=")
    if name not in TASKS:
        raise UsageError("task", f"unknown task {name!r}", _valid_names(name))
    if name in FILES:
        if not file:
            raise UsageError("task", f"{name} needs a file", f"write {name}=FILE.jsonl")
        return _from_file(name, Path(file), n, seed)
    if file:
        raise UsageError("task", f"{name} is generated and takes no file", f"write {name}")
    module = import_module(f"pipo.tasks.{name}")
    return Task(name, module.questions(module.SIZE if n is None else n, seed), module.score)


def _from_file(name: str, path: Path, n: int | None, seed: int) -> Task:
    module = import_module(f"pipo.tasks.{name}")
    return Task(path.stem if name == "chat_jsonl" else name, module.questions(n, seed, path), module.score)


def _valid_names(name: str) -> str:
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}valid: {', '.join(TASKS)}, NAME=FILE or a .jsonl path"
