"""`make demo`: the shipped model beside its uncompressed fine-tune, on real questions."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table

QUESTIONS = 8
MAX_NEW_TOKENS = 160


def main() -> None:
    """Answer a few unseen questions greedily, regular beside PIPO, and print what each cost."""
    from pipo_cli.quiet import quiet

    quiet()
    from pipo.decoding.engine import LocalEngine
    from pipo.tasks import smollm2_mix
    from pipo_cli.drafts import COLOURS

    console = Console()
    console.print("Loading [bold]demo[/] (PIPO) and [bold]demo-base[/] (uncompressed) …")
    if console.color_system:
        console.print(COLOURS)
    engines = {"regular": LocalEngine.load("demo-base"), "pipo": LocalEngine.load("demo")}
    table = Table(title="greedy, CPU, batch of one; times in milliseconds")
    for name in ("question", "method", "answer", "tokens", "steps", "tokens per step", "TTFT", "TPOT"):
        table.add_column(name, justify="left" if name in ("question", "method", "answer") else "right")
    for engine in engines.values():
        _answer(engine, smollm2_mix.questions(1, seed=3)[0])  # warm-up
    for question in smollm2_mix.questions(QUESTIONS, seed=2):
        console.rule(question.id)
        console.print(question.messages[-1]["content"], highlight=False)
        for method, engine in engines.items():
            _show(console, table, method, engine, question)
    console.print(table)
    console.print(
        "PIPO is lossy: an answer may be wrong where the uncompressed model's is right. docs/results has the numbers."
    )


def _answer(engine: Any, question: Any) -> Any:
    from pipo.decoding.options import GREEDY

    arrived = time.perf_counter()
    prompt = engine.encode(question.messages)

    return engine.complete([prompt], sampling=GREEDY, max_new_tokens=MAX_NEW_TOKENS, arrived=arrived)[0]


def _show(console: Console, table: Table, method: str, engine: Any, question: Any) -> None:
    from pipo.tasks import smollm2_mix
    from pipo_cli.drafts import render_slots

    done = _answer(engine, question)
    _, correct = smollm2_mix.score(done.text, question)
    verdict = "[green]right[/]" if correct else f"[red]wrong[/] (gold {question.answer})"
    console.print(f"[bold]{method}[/]: {verdict}")
    console.print(render_slots(done.slots, engine.tokenizer, console))
    table.add_row(
        question.id,
        method,
        "[green]right[/]" if correct else "[red]wrong[/]",
        str(len(done.token_ids)),
        str(done.steps),
        f"{done.tokens_per_step:.2f}",
        f"{done.ttft_ms:.0f}",
        "" if done.tpot_ms is None else f"{done.tpot_ms:.1f}",
    )


if __name__ == "__main__":
    main()
