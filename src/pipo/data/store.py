"""Tokenized chat files on the disk: made once by several processes, then mapped into memory by all that train."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipo.data.chat import BOM, Chat, Problem, parse_chat
from pipo.data.examples import Examples
from pipo.errors import UsageError, first_line
from pipo.runtime.cache import build, cache_folder
from pipo.runtime.progress import SampleProgress

FORMAT = b"1"
"""Changes when the same lines have to be tokenized anew."""

CHUNK = 4 * 2**20
"""Bytes of text that one process tokenizes at a time. Fewer are not worth a second process."""

COUNTS = ("chats", "prompts", "turns", "answers")
"""What is counted of good lines."""


class Store:
    """What lies in a folder, made of `files`. It is read from the disk as it is used, by all processes at once."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder, self.files = folder, list(files)
        self.ids = _mapped(folder / "ids.bin", np.uint32)
        self.rows = _mapped(folder / "rows.bin", np.int64).reshape(-1, 3)  # where its ids end, its file, its line
        self.answers = _mapped(folder / "answers.bin", np.int32).reshape(-1, 4)  # row, start, stop, turn: see `Answer`
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.counts: dict[str, int] = facts["counts"]
        self.problems = [Problem(self.files[file], line, reason) for file, line, reason in facts["problems"]]

    def __reduce__(self) -> tuple[type[Store], tuple[Path, list[str]]]:
        """Another process maps it itself."""
        return Store, (self.folder, self.files)

    def row(self, index: int, stop: int | None = None) -> list[int]:
        """The ids of a row, up to `stop`."""
        start, end = int(self.rows[index - 1, 0]) if index else 0, int(self.rows[index, 0])
        ids: list[int] = self.ids[start : end if stop is None else start + stop].tolist()
        return ids

    def lengths(self) -> NDArray[np.int64]:  # [R]
        """Ids of each row."""
        return np.diff(self.rows[:, 0], prepend=0)

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """By file and line, as they are read."""
        return sorted(problems, key=lambda problem: (self.files.index(problem.file), problem.line))

    def unanswered(self) -> NDArray[np.int64]:
        """The rows of prompts alone."""
        answered = np.zeros(len(self.rows), dtype=bool)
        answered[self.answers[:, 0]] = True
        return np.flatnonzero(~answered)

    def problem(self, row: int, reason: str) -> Problem:
        """What is wrong with the line of a row."""
        return Problem(self.files[int(self.rows[row, 1])], int(self.rows[row, 2]), reason)


def open_store(files: Sequence[str], examples: Examples, *, workers: int | None = None, field: str = "data") -> Store:
    """The files, tokenized: from the cache where they are there. Raises `UsageError` that names `field`."""
    for file in files:
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise UsageError(field, f"cannot read {file} ({first_line(error)})", "name a chat JSONL file") from error
    make = partial(write_store, files=files, examples=examples, workers=workers or cores())
    return Store(build(cache_folder() / "data" / key(files, examples), make), files)


def key(files: Sequence[str], examples: Examples) -> str:
    """What the tokenized files are known by: the files, the tokenizer, its template and options."""
    digest = hashlib.sha256(FORMAT)
    backend = getattr(examples.tokenizer, "backend_tokenizer", None)
    stats = [os.stat(file) for file in files]
    parts: list[Any] = [
        (os.path.realpath(file), s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)
    ]
    parts += [type(examples.tokenizer).__name__, tokenizers.__version__, examples.end, examples.special.pattern]
    parts += [examples.tokenizer.chat_template, examples.tokenizer.special_tokens_map]
    parts += [examples.template, examples.prefix, examples.prompts]
    for part in [*parts, examples.tokenizer.get_vocab() if backend is None else None]:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    if backend is not None:
        backend.no_padding()  # left there by an earlier call, and no part of it
        backend.no_truncation()
        digest.update(backend.to_str().encode())
    return digest.hexdigest()[:20]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes of a chunk of a file. The arrays are those of `Store`, their rows, ids and lines from 0."""

    lines: int
    ids: NDArray[np.uint32]
    rows: NDArray[np.int64]
    answers: NDArray[np.int32]
    problems: list[tuple[int, str]]
    counts: Counter[str]


Chunk = tuple[int, str, int, int]
"""A file's number, its path, and a range of its bytes: the lines that start there."""


def write_store(folder: Path, files: Sequence[str], examples: Examples, workers: int) -> None:
    """Tokenize the files into `folder`."""
    chunks = [chunk for number, file in enumerate(files) for chunk in _chunks(number, file)]
    ends = rows = 0
    lines: Counter[int] = Counter()  # of each file, so far
    counts: Counter[str] = Counter()
    problems: list[tuple[int, int, str]] = []
    with contextlib.ExitStack() as stack:
        out = [stack.enter_context((folder / f"{name}.bin").open("wb")) for name in ("ids", "rows", "answers")]
        progress = stack.enter_context(SampleProgress(len(chunks), 0, "parts")) if len(chunks) > 1 else None
        for (file, path, *_), part in zip(chunks, _parts(chunks, examples, workers), strict=True):
            first = np.array([ends, file, lines[file]]), np.array([rows, 0, 0, 0], dtype=np.int32)
            for stream, array in zip(out, (part.ids, part.rows + first[0], part.answers + first[1]), strict=True):
                stream.write(array.tobytes())
            problems += [(file, lines[file] + line, reason) for line, reason in part.problems]
            ends, rows = ends + len(part.ids), rows + len(part.rows)
            lines[file] += part.lines
            counts.update(part.counts)
            if progress is not None:
                progress.advance(1, f"tokenizing {path}")
    facts = {"counts": {name: counts[name] for name in COUNTS}, "problems": problems}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _parts(chunks: Sequence[Chunk], examples: Examples, workers: int) -> Iterator[Part]:
    """Each chunk's, in order."""
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from map(partial(tokenize, examples), chunks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (examples,))
    try:
        yield from pool.map(_tokenize, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


_examples: Examples | None = None  # of a process of the pool


def _start(examples: Examples) -> None:
    global _examples
    _examples = examples
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tokenize(chunk: Chunk) -> Part:
    assert _examples is not None
    return tokenize(_examples, chunk)


def tokenize(examples: Examples, chunk: Chunk) -> Part:
    """The lines of a chunk."""
    ids: list[NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)]
    rows: list[tuple[int, int, int]] = []
    answers: list[tuple[int, ...]] = []
    problems: list[tuple[int, str]] = []
    counts: Counter[str] = Counter()
    number = end = 0
    for number, line in enumerate(_lines(*chunk[1:]), 1):
        if not line.strip():
            continue
        chat = parse_chat(line)
        made = chat if isinstance(chat, str) else examples.rows(chat)
        if isinstance(chat, str) or isinstance(made, str):
            problems.append((number, str(made)))
            continue
        counts.update(counted(chat))
        for row in made:
            ids.append(np.array(row.ids, dtype=np.uint32))
            answers += [(len(rows), *answer) for answer in row.answers]
            end += len(row.ids)
            rows.append((end, 0, number))
    ends, spans = np.array(rows, dtype=np.int64).reshape(-1, 3), np.array(answers, dtype=np.int32).reshape(-1, 4)
    return Part(number, np.concatenate(ids), ends, spans, problems, counts)


def counted(chat: Chat) -> Counter[str]:
    """What a good line adds to the counts."""
    answers = len(chat.answers)
    return Counter(chats=int(answers > 0), prompts=int(not answers), turns=len(chat.messages), answers=answers)


def _chunks(number: int, file: str) -> list[Chunk]:
    size = os.path.getsize(file)
    return [(number, file, start, min(start + CHUNK, size)) for start in range(0, size, CHUNK)]


def _lines(path: str, start: int, stop: int) -> Iterator[bytes]:
    """The lines that start in a range of bytes."""
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while file.tell() < stop:
            line = file.readline()
            yield line.removeprefix(BOM) if start == 0 and file.tell() == len(line) else line


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)
