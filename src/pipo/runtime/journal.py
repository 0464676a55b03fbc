"""JSONL files that only ever grow, so that a killed run loses nothing that it finished."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipo.errors import UsageError
from pipo.runtime.provenance import write_json

BLOCK = 2**20  # bytes read at a time in search of the last newline


class Journal:
    """A JSONL file, held by one process at a time. Use it in a `with` statement.

    `option` names the user's choice of the folder in errors.
    """

    def __init__(self, path: Path, option: str) -> None:
        """Open a new file, or one to go on with: what a kill tore off behind its last whole line is removed."""
        self.path = path
        try:
            self.file: IO[bytes] = path.open("ab")
        except OSError as error:
            problem = f"cannot write {path.parent} ({error.strerror})"
            raise UsageError(option, problem, "name another folder") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UsageError(option, f"another run is writing {path.parent}", "wait for it to end") from None
        self.file.truncate(_whole_size(path))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """On return the rows are on the disk."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.write(text.encode("utf-8", "replace"))
        self.file.flush()
        os.fsync(self.file.fileno())

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, line), read one by one."""
        with self.path.open("rb") as file:
            yield from enumerate(file, 1)


def _whole_size(path: Path) -> int:
    """Bytes up to and with the last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0


def claim(option: str, folder: Path, settings: dict[str, Any]) -> None:
    """Write `settings` to a new run's run.json, or compare them with what is there. Raises `UsageError`."""
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise UsageError(option, f"{folder} is a file", "name a folder")
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(option, f"{folder} holds other files", "name a new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
        except OSError as error:
            raise UsageError(option, f"cannot write {folder} ({error.strerror})", "name another folder") from None
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UsageError(option, f"{path} is not JSON", "name a new folder") from None
    now = json.loads(json.dumps(settings))
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            problem = f"{folder} is of a run with {name} {before.get(name)!r}, this one has {now.get(name)!r}"
            raise UsageError(option, problem, "name a new folder, or run with the same options")
