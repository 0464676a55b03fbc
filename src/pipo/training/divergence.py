"""How far the student's next-token distributions are from the teacher's (paper sec. 3.2, appendix C).

They are compared position by position. Every function here is a `Compare`: its first result is differentiated, its
second, detached, is the confidence head's target. Logits are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Compare = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(student logits [C, V], teacher logits [C, V], token [C]) -> (loss [C], confidence target [C])."""


def soft_labels(student: Tensor, teacher: Tensor, token: Tensor, *, weight: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the token + weight * KL(teacher || student); the target is 1 - TV, the expected agreement.

    Without a teacher the target would be the token's probability (paper sec. 3.2), which is less than that where
    several tokens are as good.
    """
    s, t = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return -_at(s, token) + weight * _kl(t, s), overlap(s, t)


def full(student: Tensor, teacher: Tensor, token: Tensor, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Generalized JSD over the whole vocabulary; the target is 1 - TV, the expected agreement."""
    s, t = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return generalized_jsd(s, t, beta), overlap(s, t)


def overlap(s: Tensor, t: Tensor) -> Tensor:  # log-probabilities [C, V] x 2 -> [C]
    """1 - TV: the mean of `agreement` over the student's draws."""
    return torch.minimum(s.detach(), t).exp().sum(-1)


def topk(student: Tensor, teacher: Tensor, token: Tensor, *, k: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Generalized JSD, renormalised on the union of the student's top k, the teacher's top k and the token."""
    k = min(k, student.shape[-1])
    ids = torch.cat([student.topk(k).indices, teacher.topk(k).indices, token[:, None]], dim=-1).sort(-1).values
    twice = F.pad(ids[:, 1:] == ids[:, :-1], (1, 0))
    s, t = (F.log_softmax(x.gather(-1, ids).masked_fill(twice, -1e9), dim=-1) for x in (student, teacher))
    return generalized_jsd(s, t, beta), agreement(student, teacher, token)


def sampled(student: Tensor, teacher: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) estimated at one token that was drawn from the student's whole distribution.

    Its value is log p_s - log p_t. Its gradient is the score function's: that value, less the mean of earlier
    positions as a baseline, times the gradient of log p_s. (The gradient of the value itself has mean zero, whatever
    the teacher says. Later positions were drawn after this token: a baseline of them would bias its gradient.)
    """
    s, t = (_at(F.log_softmax(x, dim=-1), token) for x in (student, teacher))
    value = (s - t).detach()
    earlier = torch.arange(len(value), device=value.device).clamp(min=1)
    baseline = (value.cumsum(0) - value) / earlier
    return (value - baseline) * (s - s.detach()) + value, agreement(student, teacher, token)


def generalized_jsd(s: Tensor, t: Tensor, beta: float) -> Tensor:  # log-probabilities [C, n] x 2 -> [C]
    """beta KL(t || m) + (1 - beta) KL(s || m), m = (1 - beta) s + beta t; KL(s || t) at 1, KL(t || s) at 0."""
    if beta == 1:
        return _kl(s, t)
    if beta == 0:
        return _kl(t, s)
    m = torch.logaddexp(s + math.log(1 - beta), t + math.log(beta))
    return beta * _kl(t, m) + (1 - beta) * _kl(s, m)


def agreement(student: Tensor, teacher: Tensor, token: Tensor) -> Tensor:  # [C, V] x 2, [C] -> [C]
    """min(1, p_t / p_s) at the token: what speculative sampling would accept it with (paper eq. 7)."""
    s, t = (_at(F.log_softmax(x.detach(), dim=-1), token) for x in (student, teacher))
    return (t - s).clamp(max=0).exp()


def _kl(p: Tensor, q: Tensor) -> Tensor:  # log-probabilities [C, n] -> [C]
    return (p.exp() * (p - q)).sum(-1)


def _at(x: Tensor, token: Tensor) -> Tensor:  # [C, V], [C] -> [C]
    return x.gather(-1, token[:, None]).squeeze(-1)
