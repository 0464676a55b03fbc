"""The control: a plain causal LM, fine-tuned on the same data, order and masking, with the same chunked loss."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipo.model.losses import LossOutput, chunked_head_loss, cross_entropy
from pipo.model.packed import packed_inputs
from pipo.pairing import IGNORE


def _forward(
    self: Any,
    input_ids: Tensor,  # [B, T]
    labels: Tensor,  # [B, T], not shifted
    attention_mask: Tensor | None = None,  # [B, T]
    position_ids: Tensor | None = None,  # [1, T], of a packed row: each example's from 0
    num_items_in_batch: Tensor | None = None,  # [1]
    **_: Any,
) -> LossOutput:
    places = (
        {"attention_mask": attention_mask} if position_ids is None else packed_inputs(self.base_model, position_ids)
    )
    hidden = self.base_model(input_ids=input_ids, use_cache=False, **places).last_hidden_state
    targets = labels[:, 1:]
    valid = targets != IGNORE
    total, _probability = chunked_head_loss(
        cross_entropy, hidden[:, :-1][valid], self.get_output_embeddings().weight, [targets[valid]]
    )
    count = valid.sum() if num_items_in_batch is None else num_items_in_batch[0]
    return LossOutput(
        loss=total / count.clamp(min=1),
        metrics={"token_loss": torch.stack([total.detach(), valid.sum().to(total.dtype)])},
    )


def use_chunked_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Bind a training forward to `model` that never holds the logits of a whole batch."""
    model.forward = MethodType(_forward, model)
    return model
