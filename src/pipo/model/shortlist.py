"""The shortlist of the vocabulary that drafts are chosen from (as in FR-Spec and EAGLE-3).

The LM head is read twice a step, once for each token. With a shortlist the second read takes the listed rows alone;
a token outside the list is never drafted, and comes as token 1 of the next step instead. Logits stay in units of the
vocabulary, so that samplers and logits processors need not know.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipo.errors import UsageError


class Shortlist:
    """A copy of the head's listed rows, in one piece of memory.

    It belongs to one decoding run: training may change the head between two runs.
    """

    def __init__(self, ids: Tensor, weight: Tensor) -> None:  # [n] ascending, LM head [V, H]
        self.ids, self.vocab_size = ids, weight.shape[0]
        self.rows = weight.detach().index_select(0, ids)

    @classmethod
    def of(cls, model: Any) -> Shortlist | None:
        """The model's own, None where drafts may be any token."""
        ids = getattr(model, "draft_ids", None)
        return None if ids is None else cls(ids, model.lm_head.weight)

    def logits(self, hidden: Tensor) -> Tensor:  # [..., H] -> [..., V]
        """-inf outside the list."""
        return spread(F.linear(hidden, self.rows), self.ids, self.vocab_size)


def spread(logits: Tensor, ids: Tensor, vocab_size: int) -> Tensor:  # [..., n], [n] -> [..., V]
    """Logits of the listed tokens in units of the vocabulary: -inf elsewhere."""
    out = logits.new_full((*logits.shape[:-1], vocab_size), float("-inf"))
    return out.index_copy_(-1, ids, logits)


def restrict(logits: Tensor, ids: Tensor | None) -> Tensor:  # [..., V] -> [..., V]
    """What is left of logits over the whole vocabulary: -inf outside the list; all where there is none."""
    return logits if ids is None else spread(logits[..., ids], ids, logits.shape[-1])


def first_ids(size: int | None, vocab_size: int, pad: int | None) -> Tensor | None:  # -> [size]
    """What a new model's list holds until one is loaded: the vocabulary's first tokens, without PAD."""
    if size is None:
        return None
    if not 0 < size < vocab_size:
        raise UsageError("draft_vocab_size", f"{size} of {vocab_size} tokens is no shortlist", "null is the whole")
    ids = torch.arange(size)
    return ids if pad is None else ids + (ids >= pad)


def check_ids(ids: Tensor, vocab_size: int, pad: int | None) -> Tensor:  # [n]
    """Return them. Raises `UsageError` unless they ascend, lie within the vocabulary and leave PAD out."""
    if not len(ids) or bool((ids[1:] <= ids[:-1]).any()):
        raise UsageError("draft_ids", "are not one or more ascending token ids", "see `pipo shortlist`")
    if int(ids[0]) < 0 or int(ids[-1]) >= vocab_size:
        raise UsageError("draft_ids", f"go beyond the vocabulary of {vocab_size}", "see `pipo shortlist`")
    if pad is not None and bool((ids == pad).any()):
        raise UsageError("draft_ids", f"hold PAD ({pad}), which is never drafted", "leave it out")
    return ids
