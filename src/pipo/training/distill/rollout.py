"""The student's own answers, laid out in the pairs that it read and wrote."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipo.data.layout import Layout
from pipo.decoding.engine import Sampling
from pipo.decoding.generate import generate
from pipo.decoding.reader import left_pad
from pipo.pairing import IGNORE, Slot, pad_to_even
from pipo.training import recipe


@dataclass(frozen=True)
class Answer:
    """A prompt, the slots that followed, and why they ended ("stop" or "length")."""

    prompt: list[int]
    slots: list[Slot]
    finish_reason: str

    @property
    def tokens(self) -> list[int]:
        return [token for slot in self.slots for token in slot.tokens]

    def layout(self, pad: int) -> Layout:
        """Every slot as it was read. A rejected draft is a label too: PAD was read in its place."""
        out = Layout(pad)
        for token in pad_to_even(self.prompt, pad):
            out.put(token, IGNORE)
        for slot in self.slots:
            first, second = slot.pair(pad)
            out.put(first, slot.token1)
            out.put(second, IGNORE if slot.draft is None else slot.draft)
        return out


def seeds(seed: str, first: int, number: int) -> list[int]:
    """Of the answers to a batch, whose first one has the number `first` in its step."""
    return [random.Random(f"{seed}/{first + row}").getrandbits(63) for row in range(number)]


def sampling(how: recipe.Rollout) -> Sampling:
    """How answers are drawn."""
    return Sampling(how.temperature, how.top_p, how.top_k, how.presence_penalty, how.repetition_penalty)


@torch.no_grad()
def roll_out(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], how: recipe.Rollout, seed: str, first: int = 0
) -> list[Answer]:
    """One answer a prompt, in one batch that rows leave as they end; it ends where the model's own decoding does.

    `seed` and its number decide an answer's draws; `first` is the number of the first of `prompts`.
    """
    pad = model.config.pad_token_id
    ids, mask = left_pad(prompts, pad, model.device)
    training = model.training
    model.eval()
    out = generate(
        model,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=how.max_new_tokens,
        confidence_threshold=how.threshold,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=pad,
        generators=[torch.Generator(model.device).manual_seed(one) for one in seeds(seed, first, len(prompts))],
        tail=how.tail,
        return_dict_in_generate=True,
        **sampling(how).options(),
    )
    model.train(training)
    return [
        Answer(list(prompt), slots, reason)
        for prompt, slots, reason in zip(prompts, out.slots, out.finish_reasons, strict=True)
    ]
