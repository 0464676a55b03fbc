"""Sampling with transformers' logits processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

NEED_NO_HISTORY = (TemperatureLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
"""In transformers' order top-k comes before all but temperature, and only processors of scores come after it."""


class PresencePenalty(LogitsProcessor):
    """Subtract `penalty` from the logit of every token that was generated already (the prompt does not count)."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, input_ids[:, self.prompt_length :], True)
        return scores - self.penalty * seen


class FrequencyPenalty(LogitsProcessor):
    """Subtract `penalty` from a token's logit for every time that it was generated (the prompt does not count)."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        generated = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self.penalty * counts


@dataclass
class Sampler:
    """Draws one token a row. A row with a generator of its own draws the same tokens in any batch."""

    processors: LogitsProcessorList
    do_sample: bool
    generators: Sequence[torch.Generator] | None = None

    def __call__(self, logits: Tensor, histories: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """logits [B, V]; histories: one [1, T_i] a row, what its processors see; rows: generator of each row."""
        scores, ids = self._process(logits.float(), histories)
        if not self.do_sample:
            choice = scores.argmax(-1, keepdim=True)
        elif self.generators is None:
            choice = torch.multinomial(torch.softmax(scores, dim=-1), 1)
        else:
            probabilities = torch.softmax(scores, dim=-1)
            pairs = zip(probabilities, rows, strict=True)
            choice = torch.stack([torch.multinomial(p, 1, generator=self.generators[row]) for p, row in pairs])
        return (choice if ids is None else ids.gather(1, choice)).squeeze(1)

    def _process(self, scores: Tensor, histories: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Scores [B, V], or of the k best tokens [B, k] with their ids: what comes after top-k sees these alone."""
        ids = None
        for processor in self.processors:
            if isinstance(processor, TopKLogitsWarper):
                scores, ids = scores.topk(min(processor.top_k, scores.shape[-1]), dim=-1)
            elif isinstance(processor, NEED_NO_HISTORY) or ids is not None:
                scores = processor(histories[0], scores)
            else:
                scores = torch.cat([processor(seen, scores[i : i + 1]) for i, seen in enumerate(histories)])
        return scores, ids
