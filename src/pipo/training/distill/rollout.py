"""The student's own answers, laid out in the pairs that it read and wrote."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pipo.data.layout import Layout
from pipo.decoding.engine import Completion, LocalEngine
from pipo.pairing import IGNORE, pad_to_even
from pipo.training.recipe import Rollout


def lay_out_answer(answer: Completion, pad: int) -> Layout:
    """Every slot as it was read. A rejected draft is a label too: PAD was read in its place."""
    out = Layout(pad)
    for token in pad_to_even(answer.prompt, pad):
        out.put(token, IGNORE)
    for slot in answer.slots:
        first, second = slot.pair(pad)
        out.put(first, slot.token1)
        out.put(second, IGNORE if slot.draft is None else slot.draft)
    return out


def seeds(seed: str, first: int, number: int) -> list[int]:
    """Of the answers to a batch, whose first one has the number `first` in its step."""
    return [random.Random(f"{seed}/{first + row}").getrandbits(63) for row in range(number)]


def roll_out(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: Rollout, seed: str, first: int = 0
) -> list[Completion]:
    """One answer a prompt, in one batch that rows leave as they end; it ends where the model's own decoding does.

    `seed` and its number decide an answer's draws; `first` is the number of the first of `prompts`.
    """
    training = model.training
    try:
        return LocalEngine(model, tokenizer).complete(
            prompts,
            sampling=how,
            max_new_tokens=how.max_new_tokens,
            threshold=how.threshold,
            seeds=seeds(seed, first, len(prompts)),
            tail=how.tail,
        )
    finally:
        model.train(training)
