"""Uncompressed causal LM -> PIPO model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pipo.convert.base import load_base, load_tokenizer
from pipo.convert.pad_token import choose_pad, turn_ends, without
from pipo.errors import UsageError, first_line
from pipo.model.compressor import Compressor
from pipo.model.confidence import ConfidenceHead
from pipo.model.config import PipoConfig
from pipo.model.families import mtp_file, text_config, trained_mtp
from pipo.model.mtp import head_of, norm_like
from pipo.model.pipo import PipoForCausalLM

log = logging.getLogger("pipo")

RESIDUAL = 1.0
"""Weight of (a + b) at the compressor's start: the sum, as the paper says. Of those in docs/results it trained best."""


def from_base(
    base: str | Path | PreTrainedModel,
    compressor: str = "mlp",
    *,
    tokenizer: Any = None,
    residual: float = RESIDUAL,
    confidence_inputs: str = "states",
    mtp_from: str | None = None,
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> PipoForCausalLM:
    """A PIPO model around `base`'s weights, which are not copied; new heads are drawn from `seed`.

    `tokenizer` chooses PAD (and gets it as its pad token); None loads the one beside the base. `mtp_from`: a base
    (folder or hub id) whose trained MTP head is taken. Raises `UsageError`.
    """
    source = str(base) if isinstance(base, (str, Path)) else str(base.config._name_or_path)
    model: Any = load_base(source, dtype=dtype) if isinstance(base, (str, Path)) else base
    backbone_config = text_config(model.config)
    tokenizer = tokenizer or load_tokenizer(source)
    ends = turn_ends(tokenizer, model.generation_config)
    pad = choose_pad(tokenizer, ends[:1])
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
    with torch.device("meta"):
        pipo = PipoForCausalLM(config)
    adopt(pipo, model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make_heads(pipo)
    start_heads(pipo, trained_head(source, mtp_from, backbone_config))
    pipo.generation_config = model.generation_config
    pipo.generation_config.pad_token_id = pad
    pipo.generation_config.eos_token_id = without(ends, pad)
    return pipo.eval()


def adopt(pipo: PipoForCausalLM, base: PreTrainedModel) -> None:
    """Take over the base's backbone and LM head, without a copy."""
    pipo.backbone = base.get_decoder()
    pipo.lm_head.weight = base.get_output_embeddings().weight


def make_heads(pipo: PipoForCausalLM) -> None:
    """New compressor, MTP head and confidence head in place of those without memory, as transformers draws weights."""
    config, size = pipo.config, pipo.config.hidden_size
    pipo.compressor = Compressor(size, config.compressor, config.compressor_residual)
    pipo.confidence_head = ConfidenceHead(size, norm_like(pipo.backbone)(2 * size), config.confidence_inputs)
    pipo.mtp = head_of(pipo.backbone)
    for head in (pipo.compressor, pipo.confidence_head, pipo.mtp):
        head.apply(pipo._init_weights)
        head.to(device=pipo.lm_head.weight.device, dtype=pipo.lm_head.weight.dtype)


def trained_head(source: str, mtp_from: str | None, config: PreTrainedConfig) -> dict[str, Tensor] | None:
    """The trained MTP head to start from, None where none is found; the log says which. Raises `UsageError`."""
    place = mtp_from or source
    tensors = trained_mtp(place, config) if place else None
    if tensors is None:
        if mtp_from is not None:
            raise UsageError("--mtp-from", f"{mtp_from} has no trained MTP head", "name a base that has one")
        log.warning("MTP head: none beside the base, a new one is grown from its last layer; --mtp-from names another")
    elif mtp_from is not None or mtp_file(place) is not None:
        log.info("MTP head: the trained one of %s", mtp_file(place) or place)
    else:
        log.info("MTP head: the checkpoint's own is kept")
    return tensors


def start_heads(pipo: PipoForCausalLM, trained: dict[str, Tensor] | None) -> None:
    """The start of compressor and confidence head, and the MTP head: a trained one, or grown."""
    pipo.compressor.start()
    pipo.confidence_head.start()
    if trained is None:
        pipo.mtp.grow(pipo.backbone)
        return
    try:
        pipo.mtp.load_state_dict({name: tensor.to(pipo.dtype) for name, tensor in trained.items()})
    except RuntimeError as error:
        fix = "name a base of the same shape with --mtp-from"
        raise UsageError("mtp", f"the trained MTP head does not fit the base ({first_line(error)})", fix) from None
