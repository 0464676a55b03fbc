"""What the bytes that a step must read allow at best."""

from __future__ import annotations

from typing import Any


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def head_bytes(model: Any) -> int:
    """The LM head, read once."""
    weight = model.get_output_embeddings().weight
    return int(weight.numel() * weight.element_size())


def regular_step_bytes(model: Any, kv_bytes: float) -> float:
    """Weights and cache that one token of regular decoding reads. An embedding's single row does not count."""
    backbone = model.get_decoder()
    return _bytes(backbone) - _bytes(backbone.get_input_embeddings()) + head_bytes(model) + kv_bytes


def drafted_step_bytes(model: Any, mtp: Any, kv_bytes: float) -> float:
    """The same for a step of two tokens of `mtp` or `speculative`: the LM head is read again for the draft."""
    return regular_step_bytes(model, kv_bytes) + _bytes(mtp) + head_bytes(model)


def pair_step_bytes(model: Any, kv_bytes: float, drafts: bool = True) -> float:
    """The same for one step of PIPO: with a draft, the LM head is read twice."""
    backbone = model.backbone
    step = _bytes(backbone) - _bytes(backbone.get_input_embeddings()) + _bytes(model.compressor) + head_bytes(model)
    if drafts:
        step += _bytes(model.mtp) + _bytes(model.confidence_head) + head_bytes(model)
    return step + kv_bytes
