"""What the bytes that a step must read allow at best."""

from __future__ import annotations

from typing import Any

ID_BYTES = 8
"""Of an entry of `draft_ids`."""


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def head_bytes(model: Any) -> int:
    """The LM head, read once."""
    weight = model.get_output_embeddings().weight
    return int(weight.numel() * weight.element_size())


def draft_head_bytes(model: Any, size: int | None) -> int:
    """What a draft's logits read: the LM head, or a shortlist of `size` of its rows with their ids."""
    if size is None:
        return head_bytes(model)
    return size * (head_bytes(model) // model.config.vocab_size + ID_BYTES)


def regular_step_bytes(model: Any, kv_bytes: float) -> float:
    """Weights and cache that one token of regular decoding reads. An embedding's single row does not count."""
    backbone = model.get_decoder()
    return _bytes(backbone) - _bytes(backbone.get_input_embeddings()) + head_bytes(model) + kv_bytes


def drafted_step_bytes(model: Any, mtp: Any, kv_bytes: float) -> float:
    """The same for a step of two tokens of `mtp` or `speculative`: the LM head is read again for the draft."""
    return regular_step_bytes(model, kv_bytes) + _bytes(mtp) + head_bytes(model)


def pair_step_bytes(model: Any, kv_bytes: float, drafts: bool = True) -> float:
    """The same for one step of PIPO: with a draft, the LM head is read twice, or its shortlist the second time."""
    backbone = model.backbone
    step = _bytes(backbone) - _bytes(backbone.get_input_embeddings()) + _bytes(model.compressor) + head_bytes(model)
    if drafts:
        step += _bytes(model.mtp) + _bytes(model.confidence_head)
        step += draft_head_bytes(model, model.config.draft_vocab_size)
    return step + kv_bytes


def speedup_limit(model: Any, size: int | None, acceptance: float = 1.0) -> float:
    """Regular decoding's bytes a token / PIPO's with a shortlist of `size` (None: without), by weights alone.

    `acceptance` is the share of drafts that are kept. The cache is left out: the limit is that of short contexts.
    """
    own = draft_head_bytes(model, model.config.draft_vocab_size)
    step = pair_step_bytes(model, 0) - own + draft_head_bytes(model, size)
    return (1 + acceptance) * regular_step_bytes(model, 0) / step
