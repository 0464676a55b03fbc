"""The uncompressed teacher: its next-token distributions at pair positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipo.base import load_base
from pipo.pairing import pad_mask, token1_targets, token2_targets
from pipo.shipped import resolve


@dataclass(frozen=True)
class TeacherStates:
    """`hidden[:, p]` is the teacher's state that predicts the token at p + 1, PADs not seen."""

    hidden: Tensor  # [B, T, H]
    head: Tensor  # [V, H]
    weight: float

    def states(self, predictor: int) -> Tensor:  # -> [B, L-1, H]
        """States that predict what the backbone (1) or the MTP head (2) predicts."""
        shifted = F.pad(self.hidden, (0, 0, 1, 0))[:, :-1]  # state p - 1 predicts the token at p
        return (token1_targets if predictor == 1 else token2_targets)(shifted)

    def loss(self, logits: Tensor, targets: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:  # [C, V], [C], [C, H]
        """Cross-entropy of the hard label + weight * KL(teacher || student), and the label's probability."""
        student = F.log_softmax(logits, dim=-1)
        teacher = F.softmax((states @ self.head.t()).float(), dim=-1)
        nll = -student.gather(-1, targets[:, None]).squeeze(-1)
        divergence = F.kl_div(student, teacher, reduction="none").sum(-1)
        return nll + self.weight * divergence, torch.exp(-nll.detach())


class Teacher:
    """A frozen causal LM that reads the text without its PADs."""

    def __init__(self, source: str, weight: float, pad: int) -> None:
        self.model: Any = load_base(resolve(source), dtype="float32").eval().requires_grad_(False)
        self.weight, self.pad = weight, pad

    @torch.no_grad()
    def states(self, batch: dict[str, Tensor]) -> TeacherStates:
        """Drop the PADs, read the text once, and give every position the state of the last real token up to it."""
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        self.model.to(ids.device)
        real = mask & ~pad_mask(ids, self.pad)
        order = (~real).long().argsort(dim=1, stable=True)  # real tokens first, in order
        clean = self.model.base_model(
            input_ids=ids.gather(1, order), attention_mask=real.gather(1, order).long(), use_cache=False
        ).last_hidden_state
        at = (real.long().cumsum(1) - 1).clamp(min=0)
        hidden = clean.gather(1, at[..., None].expand(-1, -1, clean.shape[-1]))
        return TeacherStates(hidden, self.model.get_output_embeddings().weight, self.weight)
