"""Sampling with transformers' logits processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

NOTHING = -1
"""In place of a token where logits and processors together rule out all: a grammar may leave none of a shortlist."""


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
        choice = self.pick(_softmax(scores) if self.do_sample else scores, rows)[:, None]
        token = choice if ids is None else ids.gather(1, choice)
        ruled_out = scores.gather(1, choice) == float("-inf")
        ruled_out |= logits.gather(1, token) == float("-inf")  # some processors force what the logits rule out
        return token.masked_fill(ruled_out, NOTHING).squeeze(1)

    def distribution(self, logits: Tensor, histories: Sequence[Tensor]) -> Tensor:  # [B, V] -> [B, V]
        """The probabilities that a token is drawn with; when greedy, 1 for the best."""
        scores, ids = self._process(logits.float(), histories)
        p = torch.softmax(scores, dim=-1) if self.do_sample else F.one_hot(scores.argmax(-1), scores.shape[-1]).float()
        return p if ids is None else torch.zeros_like(logits, dtype=p.dtype).scatter_(1, ids, p)

    def pick(self, weights: Tensor, rows: Sequence[int]) -> Tensor:  # [B, n] -> [B]
        """Draw by the weights, not necessarily of sum 1; when greedy, the largest."""
        if not self.do_sample:
            return weights.argmax(-1)
        if self.generators is None:
            return torch.multinomial(weights, 1).squeeze(1)
        pairs = zip(weights, rows, strict=True)
        return torch.cat([torch.multinomial(w, 1, generator=self.generators[row]) for w, row in pairs])

    def uniform(self, like: Tensor, rows: Sequence[int]) -> Tensor:  # [B, ...] -> [B]
        """A number in [0, 1) for each row; when greedy, 0."""
        if not self.do_sample:
            return torch.zeros(len(rows), device=like.device)
        if self.generators is None:
            return torch.rand(len(rows), device=like.device)
        return torch.cat([torch.rand(1, generator=self.generators[row], device=like.device) for row in rows])

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


def _softmax(scores: Tensor) -> Tensor:  # [B, n] -> [B, n]
    """Of a row that rules out all: equal shares."""
    nothing = scores.amax(-1, keepdim=True) == float("-inf")
    return torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1)
