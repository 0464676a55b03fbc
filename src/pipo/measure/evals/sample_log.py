"""A run's folder: the settings that it was started with, and its samples, which only ever grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.errors import UsageError
from pipo.measure.evals.metrics import Line
from pipo.runtime.journal import Journal, claim

Key = tuple[str, str, str, int]
"""Task, question id, method, sample index."""


FIELDS = (
    *("task", "part", "question_id", "method", "sample_index", "seed", "text", "answer", "gold", "correct"),
    *("completion_tokens", "steps", "drafted", "accepted", "finish_reason", "ttft_ms", "tpot_ms", "loop_tokens"),
)
"""What every line has; a failed sample has `error` too."""


def key(line: Line) -> Key:
    return line["task"], line["question_id"], line["method"], line["sample_index"]


class SampleLog:
    """DIR/samples.jsonl, held by one process at a time. Use it in a `with` statement."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open a new folder, or one of a run with the same settings. Raises `UsageError` for any other."""
        claim("--output", folder, settings)
        self.journal = Journal(folder / "samples.jsonl", "--output")
        self.lines = {key(line): line for line in self._read()}

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.file.close()

    def append(self, lines: Sequence[Line]) -> None:
        """On return the lines are on the disk."""
        self.journal.append(lines)
        self.lines.update((key(line), line) for line in lines)

    def _read(self) -> list[Line]:
        return [parse(f"{self.journal.path}:{number}", line) for number, line in self.journal.lines()]


def parse(where: str, text: bytes | str) -> Line:
    """One line of samples.jsonl. Raises `UsageError` for one that is damaged."""
    fix = "remove the line, its sample is made again"
    try:
        line = json.loads(text)
    except ValueError:
        raise UsageError(where, "is not JSON", fix) from None
    missing = [name for name in FIELDS if name not in line] if isinstance(line, dict) else FIELDS
    if missing:
        raise UsageError(where, f"has no {', '.join(missing)}", fix)
    return dict(line)
