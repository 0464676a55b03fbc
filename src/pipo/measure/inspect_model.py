"""`pipo inspect`: a model's parts and memory, from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipo.convert.base import load_tokenizer, stored_threshold
from pipo.errors import UsageError, first_line
from pipo.model.config import PipoConfig
from pipo.model.families import kv_bytes_per_token, text_config
from pipo.model.pipo import PipoForCausalLM

TOKENS = 1000
"""What memory is given for."""


def inspect_model(source: str) -> dict[str, Any]:
    """The facts as `pipo inspect --json` prints them; what only PIPO models have is None elsewhere.

    `source` is a folder or hub id; no weights are read. Raises `UsageError`.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UsageError(
            "MODEL", f"cannot read {source} ({first_line(error)})", "name a model folder or hub id"
        ) from error
    is_pipo = isinstance(config, PipoConfig)
    backbone = text_config(config)
    parts = count_parts(config if is_pipo else backbone)
    dtype = config.dtype or backbone.dtype or torch.float32
    base_kv, pipo_kv = kv_bytes_per_token(backbone, dtype)
    return {
        "model": source,
        "model_type": config.model_type,
        "backbone": backbone.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "parts": parts,
        "parameters": sum(parts.values()),
        "tied_embeddings": bool(backbone.tie_word_embeddings),
        "compressor": config.compressor if is_pipo else None,
        "confidence_inputs": config.confidence_inputs if is_pipo else None,
        "draft_vocab_size": config.draft_vocab_size if is_pipo else None,
        "kv_bytes_per_1k_tokens": {
            "base": TOKENS * base_kv,
            "pipo": TOKENS * pipo_kv if is_pipo else None,
            "ratio": pipo_kv / base_kv if is_pipo else None,
        },
        "confidence_threshold": stored_threshold(source) if is_pipo else None,
        "pad_token_id": config.pad_token_id,
        "pad_token": _pad_token(source, config.pad_token_id),
        "base_model": config.base_model if is_pipo else None,
        "base_revision": config.base_revision if is_pipo else None,
    }


def count_parts(config: Any) -> dict[str, int]:
    """Parameters of every part; tied weights count once, as embeddings."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    backbone = model.get_decoder()
    embeddings = _size(backbone.get_input_embeddings())
    head = 0 if config.tie_word_embeddings else _size(model.get_output_embeddings())
    parts = {"backbone": _size(backbone) - embeddings, "embeddings": embeddings, "lm_head": head}
    if isinstance(model, PipoForCausalLM):
        parts |= {
            "compressor": _size(model.compressor),
            "mtp": _size(model.mtp),
            "confidence": _size(model.confidence_head),
        }
    return parts


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _pad_token(source: str, pad: int | None) -> str | None:
    try:
        return None if pad is None else str(load_tokenizer(source).convert_ids_to_tokens(pad))
    except UsageError:
        return None
