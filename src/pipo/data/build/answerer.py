"""A teacher's answers to questions: from an OpenAI-compatible endpoint, many at a time, or from a local model."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipo.data.build.recipe import Answers, BuildRecipe
from pipo.errors import UsageError, extra, first_line
from pipo.tasks.rows import Row

log = logging.getLogger("pipo")
REFUSALS = 20  # of all questions so far, and the recipe must be wrong
THOUGHT = ("reasoning_content", "reasoning")  # where servers with a reasoning parser put the thoughts


@dataclass(frozen=True)
class Order:
    """Sample `sample` of question number `index`."""

    index: int
    sample: int
    seed: int
    messages: list[dict[str, str]]


Put = Callable[[list[Row]], None]
"""Takes finished answers; on return they are safe."""


def ask(recipe: BuildRecipe, orders: Iterator[Order], put: Put) -> None:
    """Answer every order. Raises `UsageError` where the teacher cannot be used at all."""
    if recipe.teacher.endpoint is None:
        _ask_local(recipe, orders, put)
    else:
        asyncio.run(_ask_endpoint(recipe, orders, put))


def _row(order: Order, text: str, tokens: int, finish_reason: str, prefix: str) -> Row:
    """A line of answers.jsonl."""
    begun = not prefix or text.lstrip().startswith(prefix.strip())
    place = {"question": order.index, "sample": order.sample, "seed": order.seed}
    whole = text if begun else prefix + text
    return place | {"text": whole, "completion_tokens": tokens, "finish_reason": finish_reason}


async def _ask_endpoint(recipe: BuildRecipe, orders: Iterator[Order], put: Put) -> None:
    """As many workers as may ask at a time, each with one answer in memory."""
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise UsageError("teacher.endpoint", "openai is not installed", extra("data")) from None
    teacher = recipe.teacher
    key = os.environ.get(teacher.api_key_env, "none")
    options: dict[str, Any] = {"max_retries": teacher.retries, "timeout": teacher.timeout}
    answered = refused = 0

    async def work() -> None:
        nonlocal answered, refused
        for order in orders:  # one iterator for all workers
            found = await _answer(client, recipe, order)
            if isinstance(found, str):
                refused += 1
                log.warning("question %d is refused: %s", order.index, found)
                if refused == REFUSALS and not answered:
                    raise UsageError("teacher", f"{teacher.endpoint} refuses all: {found}", "correct the recipe")
            else:
                answered += 1
                put([found])

    async with AsyncOpenAI(base_url=teacher.endpoint, api_key=key, **options) as client:
        workers = [asyncio.create_task(work()) for _ in range(teacher.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _answer(client: Any, recipe: BuildRecipe, order: Order) -> Row | str:
    """One answer, or why the server refuses the question. The client retries what may pass."""
    from openai import APIConnectionError, APIError, BadRequestError

    try:
        request = {"model": recipe.teacher.model, "messages": order.messages, **_request(recipe.answers)}
        reply = await client.chat.completions.create(seed=order.seed, **request)
        choice = reply.choices[0]
    except BadRequestError as error:
        return first_line(error)[:200]
    except APIConnectionError as error:
        raise _unusable(recipe, error, "start the server, then run this again: it goes on where it stopped") from None
    except APIError as error:
        raise _unusable(recipe, error, "see the server's log, then run this again") from None
    thought = next((getattr(choice.message, field, None) for field in THOUGHT if hasattr(choice.message, field)), None)
    text = choice.message.content or ""
    if thought:
        text = f"<think>\n{thought.strip()}\n</think>\n\n{text.lstrip()}"
    tokens = 0 if reply.usage is None else reply.usage.completion_tokens
    return _row(order, text, tokens, choice.finish_reason, recipe.answers.prefix)


def _unusable(recipe: BuildRecipe, error: Exception, fix: str) -> UsageError:
    return UsageError("teacher.endpoint", f"{recipe.teacher.endpoint} failed ({first_line(error)[:200]})", fix)


def _request(answers: Answers) -> dict[str, Any]:
    """What the standard does not know goes as extra fields, and only where it is set."""
    extra: dict[str, Any] = {"top_k": answers.top_k} if answers.top_k else {}
    if answers.repetition_penalty != 1:
        extra["repetition_penalty"] = answers.repetition_penalty
    if answers.thinking is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": answers.thinking}
    return {
        "max_tokens": answers.max_tokens,
        "temperature": answers.temperature,
        "top_p": answers.top_p,
        "presence_penalty": answers.presence_penalty,
        "extra_body": extra,
    }


def _ask_local(recipe: BuildRecipe, orders: Iterator[Order], put: Put) -> None:
    from pipo.decoding.engine import LocalEngine, batches, pick_device

    teacher, answers = recipe.teacher, recipe.answers
    engine = LocalEngine.load(teacher.model, dtype=teacher.dtype, device=pick_device(teacher.device))
    for batch in batches(orders, teacher.batch_size):
        prompts = [engine.encode(order.messages, answers.thinking) for order in batch]
        seeds = [order.seed for order in batch]
        found = engine.complete(prompts, sampling=answers, max_new_tokens=answers.max_tokens, seeds=seeds)
        pairs = zip(batch, found, strict=True)
        put([_row(o, one.text, len(one.token_ids), one.finish_reason, answers.prefix) for o, one in pairs])
