"""Losses on the LM head that never hold more than one chunk of logits, in forward or backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from pipo.model.head import CHUNK, chunks


@dataclass
class LossOutput(ModelOutput):
    """A loss and the (sum, number) pairs behind what is logged."""

    loss: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


LossFn = Callable[..., tuple[Tensor, Tensor]]
"""(logits [C, V] fp32, *per-position extras [C, ...]) -> (loss [C], detached value to return [C])."""


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # [C, V], [C] -> [C], [C]
    """Negative log-likelihood and probability of the target."""
    nll = F.cross_entropy(logits, targets, reduction="none")
    return nll, torch.exp(-nll.detach())


class _ChunkedHeadLoss(torch.autograd.Function):
    """Sum of `fn(hidden @ weight.T)` over positions; gradients are taken chunk by chunk in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, H]
        weight: Tensor,  # [V, H]
        fn: LossFn,
        chunk: int,
        *extras: Tensor,  # each [N, ...]
    ) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        total = hidden.new_zeros((), dtype=torch.float32)
        values = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for rows in chunks(hidden.shape[0], chunk):
            with torch.enable_grad():
                # A leaf of the logits alone: the two products with the head are done by hand, so that no second copy
                # of a [C, V] tensor is kept alive by the graph.
                logits = (hidden[rows].detach() @ weight.detach().to(hidden.dtype).t()).requires_grad_(
                    need_hidden or need_weight
                )
                loss, values[rows] = fn(logits.float(), *(extra[rows] for extra in extras))
                loss = loss.sum()
            total += loss.detach()
            if not (need_hidden or need_weight):
                continue
            (grad,) = torch.autograd.grad(loss, logits)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight.to(grad.dtype)
            if grad_weight is not None:
                grad_weight += (grad.t() @ hidden[rows].to(grad.dtype)).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_values: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        extras = (None,) * (len(ctx.needs_input_grad) - 2)
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_total).to(ctx.weight_dtype),
            *extras,
        )


def chunked_head_loss(
    fn: LossFn,
    hidden: Tensor,  # [N, H]: the target positions only
    weight: Tensor,  # [V, H]: the LM head
    extras: Sequence[Tensor],  # each [N, ...]
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:  # scalar sum over positions, values [N]
    """`fn` over the logits of every position, summed; `values` is the second thing that `fn` returns."""
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    total, values = _ChunkedHeadLoss.apply(hidden, weight, fn, chunk, *extras)
    return total, values


def confidence_bce(logits: Tensor, targets: Tensor) -> Tensor:  # [N], [N] -> scalar sum
    """Binary cross-entropy of the confidence head against detached agreement with the teacher (paper sec. 3.2)."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.detach().float(), reduction="sum")
