"""A saved model's folder: weights, configs, tokenizer, model card, provenance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipo.convert.card import write_card
from pipo.errors import UsageError
from pipo.runtime.provenance import write_provenance


def check_new(folder: str | Path, field: str) -> None:
    """Raises `UsageError`, naming `field`, where something is in the folder already."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise UsageError(field, f"{folder} is not empty", "choose a new folder")


def save_model(model: Any, tokenizer: Any, folder: Path, **provenance: Any) -> None:
    """Write what any tool needs to load, serve and judge the model; `provenance` says what it was made from.

    The files appear in the folder when all of them are written; a save that fails leaves it as it was.
    """
    with filled(folder) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_provenance(scratch, **provenance)
        write_card(model, scratch, provenance | {"title": folder.resolve().name})


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; at the end its files move there, in place of those of the same names."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
        folder.mkdir(exist_ok=True)
        for file in scratch.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
