"""What the uncompressed teacher says of answers: of every draft, kept or not, and of the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipo.data.batch import Collator
from pipo.decoding.engine import Completion
from pipo.measure.evals.contestant import Contestant
from pipo.measure.evals.metrics import Line
from pipo.model.head import head_logits, over_chunks
from pipo.pairing import IGNORE, pad_mask, token1_targets, token2_targets
from pipo.training.distill.rollout import lay_out_answer
from pipo.training.divergence import agreement, full
from pipo.training.teacher import Teacher, same_width


class Judge:
    """The base of a PIPO model as its teacher, which may have written the answers itself: one copy serves both."""

    def __init__(self, student: Contestant, base: Contestant) -> None:
        self.student, self.base = student, base

    @cached_property
    def teacher(self) -> Teacher:
        """The base, loaded when the first answer is judged."""
        return Teacher.of(self.base.engine.model, full, self.student.engine.model.config.pad_token_id)

    @torch.no_grad()
    def __call__(self, completions: Sequence[Completion]) -> list[Line]:
        """For every answer:

        drafts: [confidence, min(1, p_t / p_s), whether it is the teacher's likeliest token, whether it was kept] each;
        teacher_logprob: the teacher's log-likelihood a token of the text, in nats; teacher_top1: the share of its
        tokens that are the teacher's likeliest. Distributions are those of temperature 1, nothing cut off.
        """
        model: Any = self.student.engine.model
        pad = model.config.pad_token_id
        rows = [lay_out_answer(answer, pad) for answer in completions]
        batch = Collator(pad)([{"input_ids": row.ids, "labels": row.labels} for row in rows])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        states, labels = self.teacher.read(batch), batch["labels"]
        first, second = token1_targets(labels), token2_targets(labels)
        kept = ~token2_targets(pad_mask(batch["input_ids"], pad))
        of_first = self._opinions(states.predicting(1)[first != IGNORE], first[first != IGNORE])
        drafts, student = second != IGNORE, None
        if drafts.any():
            read = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            student = read.mtp_hidden_states[drafts], model.lm_head.weight
        of_drafts = self._opinions(states.predicting(2)[drafts], second[drafts], student)
        found = []
        for row, answer in enumerate(completions):
            mine1, mine2 = (_part(x, valid, row) for x, valid in ((of_first, first != IGNORE), (of_drafts, drafts)))
            text = torch.cat([mine1, mine2[kept[row][drafts[row]]]])
            found.append(_line(answer, text, mine2))
        return found

    def _opinions(
        self,
        states: Tensor,  # [N, H] of the teacher
        tokens: Tensor,  # [N]
        student: tuple[Tensor, Tensor] | None = None,  # its states [N, H] and head [V, H], where it drafted the tokens
    ) -> Tensor:  # [N, 3]: log-probability, whether it is the likeliest, agreement (1 where nothing was drafted)
        def opinion(teacher_state: Tensor, token: Tensor, *student_state: Tensor) -> Tensor:  # [C, H], [C] -> [C, 3]
            teacher = head_logits(teacher_state, self.teacher.head)
            likely = torch.log_softmax(teacher, dim=-1).gather(-1, token[:, None]).squeeze(-1)
            agreed = torch.ones_like(likely)
            if student is not None:
                agreed = agreement(*same_width(head_logits(student_state[0], student[1]), teacher), token)
            return torch.stack([likely, (teacher.argmax(-1) == token).float(), agreed], dim=-1)

        return over_chunks(opinion, states, tokens, *(() if student is None else student[:1]))


def _part(values: Tensor, valid: Tensor, row: int) -> Tensor:  # [N, 3], bool [B, L-1] -> [n, 3]
    """The values of one row of the batch."""
    ends = valid.sum(1).cumsum(0).tolist()
    return values[(ends[row - 1] if row else 0) : ends[row]]


def _line(answer: Completion, text: Tensor, drafts: Tensor) -> Line:  # [tokens, 3], [drafts, 3]
    slots = [slot for slot in answer.slots if slot.draft is not None]
    judged = zip(slots, drafts.tolist(), strict=True)
    return {
        "drafts": [
            [round(slot.confidence or 0.0, 6), round(a, 6), bool(top), slot.accepted] for slot, (_, top, a) in judged
        ],
        "teacher_logprob": float(text[:, 0].mean()),
        "teacher_top1": float(text[:, 1].mean()),
    }
