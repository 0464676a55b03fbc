"""The uncompressed teacher: its next-token distributions at pair positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipo.base import load_base
from pipo.packed import packed_inputs
from pipo.pairing import pad_mask, token1_targets, token2_targets
from pipo.shipped import resolve
from pipo.training.divergence import Compare


@dataclass(frozen=True)
class TeacherStates:
    """`hidden[:, p]` is the teacher's state that predicts the token at p + 1, PADs not seen."""

    hidden: Tensor  # [B, T, H]
    head: Tensor  # [V, H]
    compare: Compare

    def states(self, predictor: int) -> Tensor:  # -> [B, L-1, H]
        """States that predict what the backbone (1) or the MTP head (2) predicts."""
        shifted = F.pad(self.hidden, (0, 0, 1, 0))[:, :-1]  # state p - 1 predicts the token at p
        return (token1_targets if predictor == 1 else token2_targets)(shifted)

    def loss(self, logits: Tensor, targets: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:  # [C, V], [C], [C, H]
        """What `compare` makes of the student's and the teacher's logits and the token."""
        return self.compare(logits, (states @ self.head.t()).float(), targets)


class Teacher:
    """A frozen causal LM that reads the text without its PADs."""

    def __init__(self, backbone: Callable[..., Any], head: Tensor, compare: Compare, pad: int) -> None:
        self.backbone, self.head, self.compare, self.pad = backbone, head, compare, pad

    @classmethod
    def load(cls, source: str, compare: Compare, pad: int, device: torch.device) -> Teacher:
        """`source`: folder, hub id, or `demo-base`."""
        model: Any = load_base(resolve(source), dtype="float32").eval().requires_grad_(False).to(device)
        return cls.of(model, compare, pad)

    @classmethod
    def of(cls, model: Any, compare: Compare, pad: int) -> Teacher:
        """A loaded causal LM."""
        return cls(model.base_model, model.get_output_embeddings().weight, compare, pad)

    @classmethod
    def with_adapter_off(cls, student: Any, compare: Compare, pad: int) -> Teacher:
        """The backbone that a peft student's adapter is on: one copy of the weights."""

        def backbone(**inputs: Any) -> Any:
            with student.disable_adapter():
                return student.get_base_model().backbone(**inputs)

        return cls(backbone, student.get_base_model().lm_head.weight, compare, pad)

    @torch.no_grad()
    def states(self, batch: dict[str, Tensor]) -> TeacherStates:
        """Drop the PADs, read the text once, and give every position the state of the last real token up to it."""
        ids, positions = batch["input_ids"], batch.get("position_ids")
        real = ~pad_mask(ids, self.pad)
        if positions is None:
            real &= batch["attention_mask"].bool()
        order = (~real).long().argsort(dim=1, stable=True)  # real tokens first, in order
        places = {"attention_mask": real.gather(1, order).long()}
        if positions is not None:
            places = packed_inputs(self.backbone, clean_positions(positions, real).gather(1, order))
        clean = self.backbone(input_ids=ids.gather(1, order), use_cache=False, **places).last_hidden_state
        at = (real.long().cumsum(1) - 1).clamp(min=0)
        hidden = clean.gather(1, at[..., None].expand(-1, -1, clean.shape[-1]))
        return TeacherStates(hidden, self.head, self.compare)


def clean_positions(positions: Tensor, real: Tensor) -> Tensor:  # [1, T], bool [1, T] -> [1, T]
    """A packed row's positions without its PADs, which get positions of their own, as if they were an example."""
    numbers = real.long().cumsum(1) - 1
    places = torch.arange(positions.shape[1], device=positions.device)[None]
    starts = torch.where(positions == 0, places, 0).cummax(1).values
    return torch.where(real, numbers - numbers.gather(1, starts), (~real).long().cumsum(1) - 1)
