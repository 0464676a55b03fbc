"""A run's folder: the settings that it was started with, and its samples, which only ever grow."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from pipo.errors import UsageError
from pipo.evals.metrics import Line
from pipo.provenance import write_json

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
        self.path = folder / "samples.jsonl"
        try:
            _claim(folder, settings)
            self.file: IO[bytes] = self.path.open("ab")
        except OSError as error:
            raise UsageError("--output", f"cannot write {folder} ({error.strerror})", "name another folder") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UsageError("--output", f"another run is writing {folder}", "wait for it to end") from None
        self.lines = {key(line): line for line in self._read()}

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, lines: Sequence[Line]) -> None:
        """On return the lines are on the disk."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.file.write(text.encode("utf-8", "replace"))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.lines.update((key(line), line) for line in lines)

    def _read(self) -> list[Line]:
        """The whole lines; what stands after the last of them was torn by a kill and is removed."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.file.truncate(len(whole))
        return [parse(f"{self.path}:{number}", line) for number, line in enumerate(whole.splitlines(), 1)]


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


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write `settings` to a new run's run.json, or compare them with what is there."""
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise UsageError("--output", f"{folder} is a file", "name a folder")
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError("--output", f"{folder} holds other files", "name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UsageError("--output", f"{path} is not JSON", "name a new folder") from None
    now = json.loads(json.dumps(settings))
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            problem = f"{folder} is of a run with {name} {before.get(name)!r}, this one has {now.get(name)!r}"
            raise UsageError("--output", problem, "name a new folder, or run with the same options")
