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

NEED_NO_HISTORY = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class PresencePenalty(LogitsProcessor):  # type: ignore[misc]
    """Subtract `penalty` from the logit of every token that was generated already (the prompt does not count)."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, input_ids[:, self.prompt_length :], True)
        return scores - self.penalty * seen


@dataclass
class Sampler:
    """Draws one token a row. A row with a generator of its own draws the same tokens in any batch."""

    processors: LogitsProcessorList
    do_sample: bool
    generators: Sequence[torch.Generator] | None = None

    def __call__(self, logits: Tensor, histories: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
        """logits [B, V]; histories: one [1, T_i] a row, the ids that its processors see; rows: generator of each row."""
        scores = self._process(logits.float(), histories)
        if not self.do_sample:
            return scores.argmax(-1)
        probabilities = torch.softmax(scores, dim=-1)
        if self.generators is None:
            return torch.multinomial(probabilities, 1).squeeze(1)
        draws = [
            torch.multinomial(p, 1, generator=self.generators[row]) for p, row in zip(probabilities, rows, strict=True)
        ]
        return torch.cat(draws)

    def _process(self, scores: Tensor, histories: Sequence[Tensor]) -> Tensor:
        if all(isinstance(processor, NEED_NO_HISTORY) for processor in self.processors):
            out: Tensor = self.processors(histories[0], scores)
            return out
        rows = [self.processors(ids, scores[i : i + 1]) for i, ids in enumerate(histories)]
        return torch.cat(rows)
