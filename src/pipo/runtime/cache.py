"""Folders that are made once, by whoever needs one first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipo.errors import UsageError


def cache_folder() -> Path:
    """Where built models and tokenized data live: $PIPO_HOME, or the user's cache."""
    return Path(os.environ.get("PIPO_HOME") or Path.home() / ".cache" / "pipo")


def build(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made once: `make` fills a temporary folder that is then renamed. Raises `UsageError`.

    Processes that want the same one wait for the first. What a killed one left half is cleared away by the next.
    """
    if not target.is_dir():
        with _alone(target):
            if not target.is_dir():  # another process was first: its folder serves
                _fill(target, make)
    return target


def _fill(target: Path, make: Callable[[Path], None]) -> None:
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        make(scratch)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time; a killed one leaves."""
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(target.with_name(f".{target.name}.lock").open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            problem = f"cannot write and lock {target.parent} ({error.strerror})"
            raise UsageError("PIPO_HOME", problem, "set it to a folder of yours") from error
        yield
