"""Questions to a server, and what the engine says to them."""

from __future__ import annotations

import json
import time
from typing import Any

from pipo.decoding.engine import Completion
from pipo.decoding.options import GREEDY

WORDS = "The answer is what how many and so on user system".split()


def question(number: int) -> str:
    """A text of its own for every number, of 1 to 30 words."""
    return " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(1 + number * 5 % 30)) + f" {number}"


def expected(engine: Any, prompt: list[int], count: int, threshold: float | None = None, **options: Any) -> Completion:
    """A single run of the local engine, greedy unless told."""
    options = {"sampling": GREEDY} | options
    return engine.complete([prompt], max_new_tokens=count, threshold=threshold, **options)[0]


def sse(lines: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, that has to end with [DONE]."""
    data = [line.removeprefix("data: ") for line in lines if line and not line.startswith(":")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def gauge(http: Any, name: str, prefix: str = "pipo") -> float:
    """A metric's value, its labels added up."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{prefix}:{name}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def until(condition: Any, seconds: float = 60) -> None:
    """Wait for it, on a machine that may be busy."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
