"""What a GPU's kernels would refuse, on a CPU: flash-attention and flash-linear-attention take no float32."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flash_attention import get_target_dtype
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.models.qwen3_5 import modeling_qwen3_5

HALVES = (torch.float16, torch.bfloat16)


def flash_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Under the name that recipes give: halves alone, a mask of [B, K], examples by their ends.

    As transformers calls the real one: float32 is cast where autocast says to what, and nowhere else.
    """
    dtype = get_target_dtype(query, module)
    if dtype is not None and query.dtype == torch.float32:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if {query.dtype, key.dtype, value.dtype} - set(HALVES):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    length, total = query.shape[2], key.shape[2]
    seen = torch.ones(length, total, dtype=torch.bool).tril(total - length)[None, None]
    ends = kwargs.get("cu_seq_lens_q")
    if ends is not None:
        example = torch.bucketize(torch.arange(total), ends[1:].long(), right=True)
        seen = seen & (example[None, :] == example[total - length :, None])
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :].bool()
    groups = query.shape[1] // key.shape[1]
    out = F.scaled_dot_product_attention(
        query, repeat_kv(key, groups), repeat_kv(value, groups), attn_mask=seen, scale=scaling
    )
    return out.nan_to_num().transpose(1, 2), None


def halves_only(rule):
    """As flash-linear-attention's own first line."""

    def checked(query, *args, **kwargs):
        assert query.dtype != torch.float32, "ChunkGatedDeltaRuleFunction does not support float32."
        return rule(query, *args, **kwargs)

    return checked


@pytest.fixture
def gpu_kernels(monkeypatch):
    """Both, where transformers looks for them."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash_attention)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda _, name, *__, **___: name)
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(modeling_qwen3_5, name, halves_only(getattr(modeling_qwen3_5, name)))
