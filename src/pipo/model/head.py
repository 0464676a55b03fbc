"""The LM head over many positions, a chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK = 512
"""Positions whose logits exist at the same time."""


def chunks(length: int, size: int = CHUNK) -> Iterator[slice]:
    """The rows of one chunk after the other."""
    return (slice(start, start + size) for start in range(0, length, size))


def head_logits(hidden: Tensor, weight: Tensor, pad: int | None = None) -> Tensor:  # [C, H], [V, H] -> fp32 [C, V]
    """Logits of all tokens; with `pad` that one is ruled out, as in decoding."""
    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    if pad is not None:
        logits[:, pad] = float("-inf")
    return logits


@torch.no_grad()
def over_chunks(fn: Callable[..., Tensor], *inputs: Tensor) -> Tensor:  # each [N, ...] -> [N, ...]
    """`fn` of a chunk of every input after the other, joined; no gradient."""
    parts = [fn(*(one[rows] for one in inputs)) for rows in chunks(max(len(inputs[0]), 1))]
    return torch.cat(parts)
