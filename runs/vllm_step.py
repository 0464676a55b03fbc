"""Where the time of a decoding step in vLLM goes, part by part.

usage: python runs/vllm_step.py MODEL [CONCURRENCY [PROMPT_LENGTH]]
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

STEPS = 64
OUTSIDE = "vLLM's engine loop, runner and copies"


class Clock:
    """Times of nested calls, each without the calls inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []  # time that calls inside have taken, of every open call

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._open.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[name] += spent - self._open.pop()
                if self._open:
                    self._open[-1] += spent

        return timed

    def watch(self, owner: Any, method: str, name: str) -> None:
        setattr(owner, method, self.around(name, getattr(owner, method)))


def profile(model: str, concurrency: int = 1, prompt_length: int = 128) -> dict[str, float]:
    """Milliseconds of a step by part, a PIPO model's every draft drawn."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # all in this process
    from pipo.decoding.options import GREEDY
    from pipo.measure.bench.cell import Cell, random_prompts
    from pipo.vllm.engine import VllmEngine

    engine = VllmEngine.load(model, max_model_len=prompt_length + 4 * STEPS, max_num_seqs=concurrency)
    pad = engine.config.pad_token_id or 0
    cell = Cell("pipo" if engine.is_pipo else "regular", prompt_length, concurrency)
    prompts = random_prompts(cell, 0, engine.config.get_text_config().vocab_size, pad)
    options: dict[str, Any] = {"sampling": GREEDY, "ignore_eos": True}
    if engine.is_pipo:
        options["force_acceptance"] = 1.0
    clock = Clock()
    watch(clock, engine)

    def spent(steps: int) -> dict[str, float]:
        clock.seconds.clear()
        start = time.perf_counter()
        engine.complete(prompts, max_new_tokens=steps * (1 + engine.is_pipo), **options)
        clock.seconds[OUTSIDE] += time.perf_counter() - start - sum(clock.seconds.values())
        return dict(clock.seconds)

    spent(2)
    prefill, whole = spent(2), spent(2 + STEPS)
    engine.close()
    return {name: 1000 * (seconds - prefill.get(name, 0)) / STEPS for name, seconds in whole.items()}


def watch(clock: Clock, engine: Any) -> None:
    """Put the clock around the parts of an engine in this process."""
    core = engine.llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    clock.watch(core.scheduler, "schedule", "scheduler")
    clock.watch(core.scheduler, "update_from_output", "scheduler")
    clock.watch(engine.llm.llm_engine.output_processor, "process_outputs", "detokenization and outputs")
    clock.watch(runner, "_prepare_inputs", "preparing inputs")
    clock.watch(runner, "_model_forward", "backbone (and compressor)")
    clock.watch(runner.model, "compute_logits", "LM head")
    clock.watch(runner, "_sample", "sampling (and acceptance)")
    if engine.is_pipo:
        clock.watch(runner.model, "draft", "MTP head")
        clock.watch(runner, "_accept", "confidence head")


def main(model: str, concurrency: str = "1", prompt_length: str = "128") -> None:
    parts = profile(model, int(concurrency), int(prompt_length))
    total = sum(parts.values())
    print("| part | ms a step | share |\n|---|---|---|")
    for name, ms in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {ms:.2f} | {ms / total:.0%} |")
    print(f"| step | {total:.2f} | |")


if __name__ == "__main__":
    main(*sys.argv[1:])
