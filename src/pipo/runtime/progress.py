"""How far a run is: a bar on a terminal, log lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("pipo")
EVERY = 10.0  # seconds between log lines


class SampleProgress:
    """Counts samples, or what else `unit` names, towards `total`. Use it in a `with` statement."""

    def __init__(self, total: int, done: int, unit: str = "samples") -> None:
        self.total, self.done, self.unit, self.spoke = total, done, unit, time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.add_task(unit, total=total, completed=done)

    def __enter__(self) -> SampleProgress:
        if self.bar is not None:
            self.bar.start()
        else:
            log.info("%d of %d %s are there", self.done, self.total, self.unit)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, number: int, what: str) -> None:
        """`number` more samples, of `what`."""
        self.done += number
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=what, completed=self.done)
        elif time.monotonic() - self.spoke >= EVERY or self.done == self.total:
            self.spoke = time.monotonic()
            log.info("%s: %d of %d %s", what, self.done, self.total, self.unit)
