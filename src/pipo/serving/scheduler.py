"""The thread that decodes: a bounded queue in front of one running batch."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from pipo.decoding.attention import fast_attention
from pipo.decoding.generate import attention_configs
from pipo.decoding.shared import SharedLoop
from pipo.errors import UsageError, first_line
from pipo.serving.generation import Generation

log = logging.getLogger("pipo.serving")


class Busy(Exception):
    """The queue is full."""


class Scheduler:
    """`ended` is called, by the decoding thread, with every generation that is over."""

    def __init__(
        self, model: Any, *, max_num_seqs: int, max_waiting: int, ended: Callable[[Generation], None] = lambda _: None
    ) -> None:
        kind = SharedLoop.unsupported(model)
        if kind is not None and max_num_seqs > 1:
            raise UsageError("--max-num-seqs", f"answers cannot be batched, the model has a {kind}", "set it to 1")
        self.model, self.max_num_seqs, self.max_waiting, self._ended = model, max_num_seqs, max_waiting, ended
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="pipo-decoder", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Is the decoding thread there?"""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Answers that are queued."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are decoded."""
        return len(self._running)

    @property
    def tokens_in_use(self) -> int:
        """Tokens, of prompts and answers, that the batch remembers."""
        return sum(generation.member.length for generation in list(self._running))

    @property
    def capacity(self) -> int:
        """Answers that can be there at a time, decoded or queued."""
        return self.max_num_seqs + self.max_waiting

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue them, all or none. Raises `Busy`."""
        with self._wake:
            if self._closing or self.running + self.waiting + len(generations) > self.capacity:
                raise Busy
            self._waiting.extend(generations)
            self._wake.notify()

    def abort(self, generations: Sequence[Generation]) -> None:
        """Nobody waits for these any more."""
        with self._wake:
            for generation in generations:
                generation.abort()
                with suppress(ValueError):
                    self._waiting.remove(generation)
                    self._ended(generation)

    def close(self) -> None:
        """Drop what is left and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @torch.no_grad()
    def _work(self) -> None:
        loop = SharedLoop(self.model)
        with fast_attention(*attention_configs(self.model)):
            while self._wait():
                if len(self._running) < self.max_num_seqs and self._waiting:
                    self._admit(loop)
                if loop.members:
                    self._try(loop, loop.step)
                self._prune()
        loop.clear()
        for generation in [*self._running, *self._waiting]:
            if not generation.over:
                generation.fail("the server is shutting down")
            self._ended(generation)
        self._running, self._waiting = [], deque()

    def _wait(self) -> bool:
        """Until there is something to do; False where the server closes."""
        with self._wake:
            while not (self._waiting or self._running or self._closing):
                self._wake.wait()
            return not self._closing

    def _admit(self, loop: SharedLoop) -> None:
        """One prompt a step, so that a long queue does not hold up those who have begun."""
        with self._wake:
            if not self._waiting:
                return
            generation = self._waiting.popleft()
            self._running.append(generation)
        generation.start()
        self._try(loop, lambda: loop.admit(generation.member))

    def _try(self, loop: SharedLoop, work: Callable[[], None]) -> None:
        """What raises fails those that are no members after it, and nobody else."""
        try:
            work()
        except Exception as error:
            log.exception("decoding failed")
            for generation in self._running:
                if not generation.over and not any(member is generation.member for member in loop.members):
                    generation.fail(f"{type(error).__name__}: {first_line(error)}")

    def _prune(self) -> None:
        over = [generation for generation in self._running if generation.over]
        if over:
            self._running = [generation for generation in self._running if not generation.over]
            for generation in over:
                self._ended(generation)
