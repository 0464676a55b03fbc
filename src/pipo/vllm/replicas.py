"""Several engines with the same model, each in processes of its own, behind the interface of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipo.decoding.engine import Completion
from pipo.errors import UsageError
from pipo.vllm.engine import VllmEngine

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Replicas:
    """On GPUs one each. A batch is dealt out; with seeds an answer does not depend on who gives it."""

    def __init__(self, engines: Sequence[VllmEngine]) -> None:
        self.engines, first = list(engines), engines[0]
        self.tokenizer, self.encode, self.is_pipo = first.tokenizer, first.encode, first.is_pipo

    @classmethod
    def load(cls, source: str, number: int, **settings: Any) -> Replicas:
        """`settings` as of `VllmEngine.load`. Raises `UsageError` where there are fewer GPUs than replicas."""
        engines: list[VllmEngine] = []
        try:
            for device in devices(number):
                with only(device):
                    engines.append(VllmEngine.load(source, **settings))
        except BaseException:
            close(engines)
            raise
        return cls(engines)

    def complete(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int], **options: Any) -> list[Completion]:
        """As `VllmEngine.complete`."""
        number = len(self.engines)

        def part(index: int) -> list[Completion]:
            mine = slice(index, None, number)
            asked = prompts[mine]
            return self.engines[index].complete(asked, seeds=seeds[mine], **options) if asked else []

        with ThreadPoolExecutor(number) as pool:
            parts = list(pool.map(part, range(number)))
        return [parts[row % number][row // number] for row in range(len(prompts))]

    def close(self) -> None:
        close(self.engines)


def close(engines: Sequence[VllmEngine]) -> None:
    for engine in engines:
        engine.close()


def devices(number: int) -> list[str | None]:
    """A GPU for every replica; None where they share a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return [None] * number
    listed = os.environ.get(VISIBLE)
    found = listed.split(",") if listed else [str(i) for i in range(current_platform.device_count())]
    if len(found) < number:
        raise UsageError("--replicas", f"{number}, but {len(found)} GPUs", "give every replica a GPU")
    return list(found[:number])


@contextmanager
def only(device: str | None) -> Iterator[None]:
    """Processes that are started in here see this GPU alone."""
    before = os.environ.get(VISIBLE)
    if device is not None:
        os.environ[VISIBLE] = device
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif device is not None:
            del os.environ[VISIBLE]
