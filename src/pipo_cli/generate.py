"""`pipo generate`: one or many answers."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipo_cli import options
from pipo_cli.options import Dtype

if TYPE_CHECKING:
    from pipo.decoding.engine import Completion, LocalEngine
    from pipo.decoding.options import Sampling
    from pipo_cli.prompts import Prompt

FILE = 'Text with one prompt a line, or JSONL with "prompt", "question" or "messages"; - is stdin.'


@options.with_sampling
def generate(
    model: options.ModelArgument,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="A question; - is stdin.")] = None,
    file: Annotated[str | None, typer.Option(metavar="F", help=FILE)] = None,
    threshold: options.ThresholdOption = None,
    max_new_tokens: options.MaxNewTokensOption = 256,
    sampling: Any = None,
    seed: options.SeedOption = None,
    show_drafts: Annotated[bool, typer.Option("--show-drafts", help="Colour the drafts that the model made.")] = False,
    as_json: options.JsonOption = False,
    dtype: options.DtypeOption = Dtype.auto,
    device: options.DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of --file decoded at a time.")] = 1,
) -> None:
    """Answer one question, or every one of a file.

    --json prints one object an answer, a line each. Times are null where --batch-size is above 1.
    """
    prompts = _prompts(prompt, file)
    if show_drafts and as_json:
        raise typer.BadParameter("goes without --json", param_hint="--show-drafts")
    threshold = options.check_threshold(threshold)
    engine = options.load_engine(model, dtype, device, threshold)
    answers = _answers(engine, prompts, sampling, max_new_tokens, threshold, seed, batch_size)
    for answer in answers:
        if as_json:
            typer.echo(json.dumps(to_dict(answer), ensure_ascii=False))
        elif show_drafts:
            _show(answer, engine)
        else:
            typer.echo(answer.text)


def _prompts(prompt: str | None, file: str | None) -> list[Prompt]:
    from pipo_cli.prompts import read_prompt, read_prompts

    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either PROMPT or --file", param_hint="PROMPT")
    return [read_prompt(prompt)] if prompt is not None else read_prompts(str(file))


def _answers(
    engine: LocalEngine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    max_new_tokens: int,
    threshold: float | None,
    seed: int | None,
    batch_size: int,
) -> Iterator[Completion]:
    """In the order of the prompts. An answer depends on the seed and its place alone, not on the batch size."""
    seed = random.randrange(2**32) if seed is None else seed
    for start in range(0, len(prompts), batch_size):
        arrived = time.perf_counter()
        batch = [engine.encode(prompt) for prompt in prompts[start : start + batch_size]]
        yield from engine.complete(
            batch,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            threshold=threshold,
            seeds=range(seed + start, seed + start + len(batch)),
            arrived=arrived,
        )


def to_dict(answer: Completion) -> dict[str, Any]:
    """An answer as JSON shows it."""
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.token_ids)},
        "pipo": {
            "steps": answer.steps,
            "drafted": answer.drafted,
            "accepted": answer.accepted,
            "acceptance_rate": answer.acceptance_rate,
            "tokens_per_step": answer.tokens_per_step,
            "ttft_ms": answer.ttft_ms,
            "tpot_ms": answer.tpot_ms,
        },
    }


def _show(answer: Completion, engine: LocalEngine) -> None:
    from rich.console import Console

    from pipo_cli.drafts import legend, render_slots

    console = Console(highlight=False)
    console.print(render_slots(answer.slots, engine.tokenizer, console), soft_wrap=True)
    console.print(legend(answer.slots), style="dim")
