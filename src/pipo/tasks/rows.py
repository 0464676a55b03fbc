"""Rows of a data set: from a local file of its schema, or from the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipo.errors import UsageError, extra, first_line

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
"""(where a row stands, for messages; the row)"""


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. With `file`, that JSONL file of its repository is read instead of a split."""

    name: str
    split: str = "test"
    config: str | None = None
    file: str | None = None


def file_rows(path: Path) -> Rows:
    """Rows of a .jsonl, .json (a list), .csv or .parquet file, one after the other. Raises `UsageError`."""
    read = {".csv": _csv, ".json": _json, ".parquet": _parquet}.get(path.suffix, _jsonl)
    empty = True
    try:
        for where, row in read(path):
            empty = False
            yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError("task", f"cannot read {path}: {first_line(error)}", "give a UTF-8 .jsonl file") from None
    if empty:
        raise UsageError("task", f"{path} has no lines", "give one JSON object a line")


def hub_rows(hub: Hub, otherwise: str) -> Rows:
    """Rows of a data set of the hub, which the library keeps in its cache. `otherwise`: what to do without the hub."""
    if hub.file is not None:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(hub.name, hub.file, repo_type="dataset")
        except Exception as error:
            raise _unreachable(hub, error, otherwise) from None
        yield from file_rows(Path(path))
        return
    try:
        from datasets import load_dataset
    except ImportError:
        fix = f"{extra('hub')}, or {otherwise}"
        raise UsageError("task", f"{hub.name} is on the hub, and datasets is not installed", fix) from None
    try:
        found = load_dataset(hub.name, hub.config, split=hub.split)
    except Exception as error:
        raise _unreachable(hub, error, otherwise) from None
    for number, row in enumerate(found):
        yield f"{hub.name}:{number}", row


def _unreachable(hub: Hub, error: Exception, otherwise: str) -> UsageError:
    return UsageError("task", f"cannot get {hub.name} from the hub ({first_line(error)[:200]})", otherwise)


def _jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _object(f"{path}:{number}", line)


def _object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"is not JSON ({error})", "write one JSON object a line") from None
    return _checked(where, row)


def _checked(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UsageError(where, f"is a {type(row).__name__}", "write one JSON object a line")
    return row


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError("task", f"{path} is not JSON ({error})", "give a list of objects, or a .jsonl file") from None
    if not isinstance(rows, list):
        raise UsageError("task", f"{path} is no list", "give a list of objects, or a .jsonl file")
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", _checked(f"{path}[{number}]", row)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            yield f"{path} row {number}", row


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        fix = f"{extra('hub')}, or give a .jsonl file"
        raise UsageError("task", f"{path} needs pyarrow, which is not installed", fix) from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(64):
            for row in batch.to_pylist():
                yield f"{path} row {number}", row
                number += 1
    except ValueError as error:
        raise UsageError("task", f"cannot read {path}: {first_line(error)}", "give a .jsonl file") from None


def text(where: str, row: Row, *fields: str) -> str:
    """The string in the first of `fields` that is there; it must not be empty."""
    field = next((field for field in fields if field in row), fields[0])
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where} {field}", "is missing or no text", f'add "{field}": "..."')
    return value


def gold(where: str, row: Row, field: str = "answer") -> str:
    """A string or a number; whole floats lose their `.0`."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(where, row, field)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
