"""The vocabulary of PIPO, for trainer, decoder and server alike.

A *pair* (or *slot*) is two neighbouring positions (2i, 2i+1) of a padded sequence: one backbone position, one KV-cache
entry. PAD is only ever the second of a pair. A step reads one pair and writes the next one: *token 1* from the
backbone, *token 2* (the draft) from the MTP head. The draft is *accepted*, or PAD takes its place (*rejected*).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipo.errors import UsageError

IGNORE = -100
"""Label of a position that is no target."""

DEFAULT_THRESHOLD = 0.95
"""The paper's, for models that store none."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One decoding step's emission. `draft` is None where none was compared with the threshold."""

    token1: int
    draft: int | None = None
    confidence: float | None = None
    accepted: bool = False

    @property
    def tokens(self) -> list[int]:
        """The real tokens of this slot: one or two, never PAD."""
        return [self.token1, self.draft] if self.accepted and self.draft is not None else [self.token1]

    def pair(self, pad: int) -> tuple[int, int]:
        """What the next step reads."""
        return self.token1, self.draft if self.accepted and self.draft is not None else pad


@dataclass(frozen=True, slots=True)
class Verified(Slot):
    """One step of speculative decoding: `draft` is that of the step before, and `token1` stands in its place.

    `bonus` is the token after an accepted draft, from the same forward; None where the draft ended the answer.
    """

    bonus: int | None = None

    @property
    def tokens(self) -> list[int]:
        """The real tokens of this step: one or two."""
        return [self.token1] if self.bonus is None else [self.token1, self.bonus]


def pad_to_even(tokens: Sequence[int], pad: int) -> list[int]:
    """A prompt that fills whole pairs: one PAD at its end where its length is odd."""
    return [*tokens, pad] if len(tokens) % 2 else list(tokens)


def to_pairs(tokens: Sequence[int], pad: int) -> list[tuple[int, int]]:
    """Real tokens -> pairs, the last one filled with PAD where their number is odd."""
    even = pad_to_even(tokens, pad)
    return list(zip(even[0::2], even[1::2], strict=True))


def pad_mask(ids: Tensor, pad: int) -> Tensor:  # [B, T] -> bool [B, T]
    """PADs: second of a pair."""
    second = torch.arange(ids.shape[1], device=ids.device) % 2 == 1
    return (ids == pad) & second


def check_even(length: int) -> None:
    """A sequence that is read in pairs has an even length."""
    if length % 2:
        raise UsageError("input_ids", f"length {length} is odd", "pad it to whole pairs (pipo.pairing.pad_to_even)")


def token1_targets(x: Tensor) -> Tensor:  # [B, T] -> [B, L-1]
    """What the backbone state of pair i predicts: the first of pair i+1 (paper eq. 2-3)."""
    return x[:, 2::2]


def token2_targets(x: Tensor) -> Tensor:  # [B, T] -> [B, L-1]
    """What the MTP state of pair i predicts: the second of pair i+1 (eq. 4-5)."""
    return x[:, 3::2]


def pair_mask(mask: Tensor) -> Tensor:  # [B, T] -> [B, L]
    """A pair is real where either of its tokens is."""
    return mask.view(mask.shape[0], -1, 2).amax(-1)


def pair_positions(mask: Tensor) -> Tensor:  # [B, L] -> [B, L]
    """Rotary positions count pairs, from 0 at a row's first real pair."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def packed_pair_positions(positions: Tensor) -> Tensor:  # [1, T] -> [1, L]
    """The same of a packed row, from its tokens' positions, which start anew with every example (at whole pairs)."""
    return positions[:, 0::2] // 2


def check_threshold(value: float) -> float:
    """A confidence threshold: any finite number >= 0 (0 accepts every draft, above 1 none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UsageError("confidence_threshold", f"{value!r} is no finite number >= 0", "0 accepts all, above 1 none")
    return float(value)


def chosen_threshold(given: float | None, stored: float | None) -> float:
    """The caller's, else the model's own, else the paper's. Raises `UsageError` for one that cannot be."""
    return check_threshold(next((value for value in (given, stored) if value is not None), DEFAULT_THRESHOLD))


def accepts_none(threshold: float) -> bool:
    """Above 1 no confidence can pass, so no draft has to be made."""
    return threshold > 1.0


def accept(confidence: Tensor, threshold: float | Tensor) -> Tensor:  # [B], one threshold or [B] -> bool [B]
    """The acceptance rule (paper sec. 3): confidence >= threshold, compared in float32."""
    return confidence.float() >= torch.as_tensor(threshold, dtype=torch.float32, device=confidence.device)


def check_force_acceptance(value: float) -> float:
    """The share of drafts that a seeded coin keeps, in measurements of speed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError("force_acceptance", f"{value!r} is no share", "use a number from 0 to 1")
    return float(value)
