"""Uncompressed causal LM -> PIPO model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipo.convert.base import load_base, load_tokenizer
from pipo.convert.pad_token import choose_pad, turn_ends, without
from pipo.model.config import PipoConfig
from pipo.model.families import native_mtp, text_config
from pipo.model.pipo import PipoForCausalLM

RESIDUAL = 1.0
"""Weight of (a + b) at the compressor's start: the sum, as the paper says. Of those in docs/results it trained best."""


def from_base(
    base: str | Path | PreTrainedModel,
    compressor: str = "mlp",
    *,
    tokenizer: Any = None,
    residual: float = RESIDUAL,
    confidence_inputs: str = "states",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> PipoForCausalLM:
    """A PIPO model around `base`'s weights; new heads are drawn from `seed`.

    `tokenizer` chooses PAD (and gets it as its pad token); None loads the one beside the base. Raises `UsageError`.
    """
    source = str(base) if isinstance(base, (str, Path)) else str(base.config._name_or_path)
    model: Any = load_base(source, dtype=dtype) if isinstance(base, (str, Path)) else base
    backbone_config = text_config(model.config)
    pad = choose_pad(tokenizer := tokenizer or load_tokenizer(source), turn_ends(tokenizer, model.generation_config))
    if pad >= backbone_config.vocab_size:
        model.resize_token_embeddings(pad + 1)
    config = PipoConfig(
        backbone_config=backbone_config,
        compressor=compressor,
        compressor_residual=residual,
        confidence_inputs=confidence_inputs,
        pad_token_id=pad,
        base_model=source or None,
        base_revision=getattr(model.config, "_commit_hash", None),
        dtype=model.dtype,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipo = PipoForCausalLM(config).to(model.dtype)
    adopt(pipo, model)
    start_heads(pipo, native_mtp(source, backbone_config))
    pipo.generation_config = model.generation_config
    pipo.generation_config.pad_token_id = pad
    pipo.generation_config.eos_token_id = without(model.generation_config.eos_token_id, pad)
    return pipo.eval()


def adopt(pipo: PipoForCausalLM, base: PreTrainedModel) -> None:
    """Take over the base's backbone and LM head, without a copy."""
    pipo.backbone = base.get_decoder()
    pipo.lm_head.weight = base.get_output_embeddings().weight


def start_heads(pipo: PipoForCausalLM, native: dict[str, torch.Tensor] | None) -> None:
    """The start of compressor and confidence head, and the MTP head: the checkpoint's own, or grown."""
    pipo.compressor.start()
    pipo.confidence_head.start()
    if native is None:
        pipo.mtp.grow(pipo.backbone)
    else:
        pipo.mtp.load_state_dict({name: tensor.to(pipo.dtype) for name, tensor in native.items()})
