"""The uncompressed teacher: its next-token distributions at pair positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipo.convert.base import load_base
from pipo.convert.shipped import resolve
from pipo.errors import UsageError
from pipo.model.packed import packed_inputs
from pipo.pairing import pad_mask, token1_targets, token2_targets
from pipo.training.divergence import Compare, agreement


@dataclass(frozen=True)
class TeacherStates:
    """`hidden[:, p]` is the teacher's state that predicts the token at p + 1, PADs not seen."""

    hidden: Tensor  # [B, T, H]
    head: Tensor  # [V, H]
    compare: Compare

    def predicting(self, predictor: int) -> Tensor:  # -> [B, L-1, H]
        """States that predict what the backbone (1) or the MTP head (2) predicts."""
        shifted = F.pad(self.hidden, (0, 0, 1, 0))[:, :-1]  # state p - 1 predicts the token at p
        return (token1_targets if predictor == 1 else token2_targets)(shifted)

    def loss(
        self,
        logits: Tensor,  # [C, V] of the student
        targets: Tensor,  # [C]
        states: Tensor,  # [C, H] of the teacher
        drafts: Tensor | None = None,  # [C] what the confidence head judges, where it sees the drafted token
    ) -> tuple[Tensor, Tensor]:  # [C], [C]
        """What `compare` makes of the student's and the teacher's logits and the token."""
        logits, teacher = same_width(logits, (states @ self.head.t()).float())
        loss, target = self.compare(logits, teacher, targets)
        return loss, target if drafts is None else agreement(logits, teacher, drafts)


def same_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:  # [C, V], [C, V'] -> [C, min(V, V')] x 2
    """Logits of the tokens that both have: a student may have a row for PAD, and heads are padded to round numbers."""
    width = min(student.shape[-1], teacher.shape[-1])
    return student[:, :width], teacher[:, :width]


def check_same_tokens(student: Any, teacher: Any, field: str = "teacher") -> None:
    """The teacher reads the student's ids: every token but PAD, and the end of a turn, must be the same."""
    if _vocabulary(student, student.pad_token) != _vocabulary(teacher, student.pad_token):
        raise UsageError(field, "its tokenizer is another than the student's", "choose a teacher of the same family")
    if student.eos_token_id != teacher.eos_token_id:
        problem = f"its EOS is {teacher.eos_token!r}, the student's {student.eos_token!r}"
        raise UsageError(field, problem, "give both the same eos_token")


def _vocabulary(tokenizer: Any, pad: str) -> dict[str, int]:
    """Ids of all tokens but the student's PAD, which may be a new one that the teacher never reads."""
    return {token: number for token, number in tokenizer.get_vocab().items() if token != pad}


class Teacher:
    """A frozen causal LM that reads the text without its PADs."""

    def __init__(self, backbone: Callable[..., Any], head: Tensor, compare: Compare, pad: int) -> None:
        self.backbone, self.head, self.compare, self.pad = backbone, head, compare, pad

    @classmethod
    def load(
        cls,
        source: str,
        compare: Compare,
        pad: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
    ) -> Teacher:
        """`source`: folder, hub id, or `demo-base`."""
        model: Any = load_base(resolve(source), dtype=dtype, attn_implementation=attention)
        model = model.eval().requires_grad_(False).to(device)
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
    def read(self, batch: dict[str, Tensor]) -> TeacherStates:
        """Drop the PADs, read the text once, and give every position the state of the last real token up to it."""
        ids, positions = batch["input_ids"], batch.get("position_ids")
        real = ~pad_mask(ids, self.pad)
        if positions is None:
            real &= batch["attention_mask"].bool()
        ids = ids.masked_fill(~real, 0)  # PAD may be a token that the teacher does not have
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
