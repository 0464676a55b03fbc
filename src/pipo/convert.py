"""Uncompressed causal LM -> PIPO model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipo.base import load_base
from pipo.config import PipoConfig
from pipo.families import native_mtp, text_config
from pipo.model import PipoForCausalLM

RESIDUAL = 1.0
"""Weight of (a + b) at the compressor's start. See docs/results for the comparison."""


def from_base(
    base: str | Path | PreTrainedModel,
    compressor: str = "mlp",
    *,
    residual: float = RESIDUAL,
    pad_token_id: int | None = None,
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> PipoForCausalLM:
    """A PIPO model around `base`'s weights; new heads are drawn from `seed`.

    `pad_token_id` is the PAD of pairs; None takes the base config's. Raises `UsageError` for an unknown family.
    """
    source = str(base) if isinstance(base, (str, Path)) else base.config._name_or_path
    model = load_base(source, dtype=dtype) if isinstance(base, (str, Path)) else base
    backbone_config = text_config(model.config)
    config = PipoConfig(
        backbone_config=backbone_config,
        compressor=compressor,
        compressor_residual=residual,
        pad_token_id=pad_token_id if pad_token_id is not None else backbone_config.pad_token_id,
        base_model=source or None,
        base_revision=getattr(model.config, "_commit_hash", None),
        dtype=model.dtype,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipo = PipoForCausalLM(config).to(model.dtype)
    adopt(pipo, model)
    pipo.compressor.start()
    native = native_mtp(source, backbone_config)
    if native is None:
        pipo.mtp.grow(pipo.backbone)
    else:
        pipo.mtp.load_state_dict({name: tensor.to(model.dtype) for name, tensor in native.items()})
    pipo.generation_config = model.generation_config
    return pipo.eval()


def adopt(pipo: PipoForCausalLM, base: PreTrainedModel) -> None:
    """Take over the base's backbone and LM head, without a copy."""
    backbone: Any = base.get_decoder()
    pipo.backbone = backbone
    pipo.lm_head.weight = base.get_output_embeddings().weight
