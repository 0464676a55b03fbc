"""Mathematics with a boxed final answer: the prompt, and a score by value (math-verify) in bounded time."""

from __future__ import annotations

import atexit
import json
import selectors
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from pipo.errors import UsageError, extra
from pipo.tasks.question import Question

PROMPT = "Solve the problem step by step. Put the final answer in \\boxed{}."
TAIL = 2000  # characters at the end of an output in which its answer is looked for
SECONDS = 20.0  # for one comparison, the worker's start included
WORKER = Path(__file__).with_name("math_worker.py")


def messages(question: str) -> list[dict[str, str]]:
    """The chat that asks `question`."""
    return [{"role": "user", "content": f"{PROMPT}\n\n{question}"}]


def score(text: str, question: Question) -> tuple[str | None, bool]:
    """The last box near the end of `text`, else what math-verify finds there: (answer or None, equal to the gold)."""
    tail = text[-TAIL:]
    box = last_box(tail)
    answer, correct = _worker.compare(question.answer, tail if box is None else f"$\\boxed{{{box}}}$")
    return answer if box is None else box, correct


def last_box(text: str) -> str | None:
    """What stands in the last closed `\\boxed{...}` of `text`, its inner braces kept; None without one."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for end in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + 7 : end].strip()
        start = text.rfind("\\boxed{", 0, start)
    return None


class _Worker:
    """A `math_worker` process, started when first needed and again after it was killed. Safe from any thread."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = Lock()

    def compare(self, gold: str, text: str) -> tuple[str | None, bool]:
        """(answer found in `text` or None, equal to `gold`); (None, False) when it takes more than SECONDS."""
        with self.lock:
            reply = self._ask(json.dumps([gold, text]))
            if not reply:
                self.stop()
                return None, False
            answer, correct = json.loads(reply)
            return answer, correct

    def _ask(self, line: str) -> str:
        """The worker's reply to `line`, empty if it died or was too slow."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(SECONDS) else ""

    def _start(self) -> subprocess.Popen[str]:
        if find_spec("math_verify") is None:
            raise UsageError("task", "math-verify is not installed", extra("eval"))
        command = [sys.executable, "-P", str(WORKER)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


_worker = _Worker()
atexit.register(_worker.stop)
