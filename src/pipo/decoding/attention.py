"""Attention of few query positions that reads grouped keys and values once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "pipo_sdpa"
FEW = 2
"""Query positions of a step: one, or two where a base reads a token and its draft."""


def grouped_sdpa(
    module: nn.Module,
    query: Tensor,  # [B, heads, Q, D]
    key: Tensor,  # [B, kv_heads, K, D]
    value: Tensor,
    attention_mask: Tensor | None,  # [B, 1, Q, K]
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # [B, Q, heads, D]
    """At few Q the heads of a group are the rows of one product, so keys and values are not repeated in memory."""
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    if groups == 1 or length > FEW or (length > 1 and attention_mask is None):  # None: causal from the first position
        if query.device.type == "cpu" and groups > 1:  # the CPU's flash kernel has no groups, its fallback is quadratic
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
            module = _Ungrouped()
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows = query.reshape(query.shape[0], key.shape[1], groups * length, query.shape[-1])
    mask = attention_mask if length == 1 or attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(query.shape).transpose(1, 2), None


class _Ungrouped(nn.Module):
    num_key_value_groups = 1
    is_causal = True


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def fast_attention(*configs: PreTrainedConfig) -> Iterator[None]:
    """Decode with `grouped_sdpa` where the model would use transformers' SDPA; other kernels stay as chosen."""
    changed = [config for config in configs if config._attn_implementation == "sdpa"]
    for config in changed:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation = "sdpa"
