"""Pair-out: the MTP head that drafts token 2 from the backbone's state and token 1 (paper sec. 3.1, eq. 4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


def mtp_config(backbone_config: PreTrainedConfig) -> PreTrainedConfig:
    """The backbone's config cut to one full-attention layer."""
    config = copy.deepcopy(backbone_config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"]
    return config


class MtpHead(nn.Module):
    """Fuses [norm(e(token 1)); norm(h)], then one decoder layer and a final norm of the backbone's own classes.

    The layer attends causally over the fused states of all earlier pairs, at the positions of the pairs whose backbone
    states it reads. Entry i of its cache depends on token 1 of pair i+1 alone, so a rejected draft leaves no trace.
    """

    def __init__(self, backbone: Any, norm: Any) -> None:  # norm: size -> module of the backbone's kind
        super().__init__()
        self.config = mtp_config(backbone.config)
        size = self.config.hidden_size
        self.pre_fc_norm_embedding = norm(size)
        self.pre_fc_norm_hidden = norm(size)
        self.fc = nn.Linear(2 * size, size, bias=False)
        # A one-layer instance of the backbone's class brings masks, rotary embedding, cache handling and final norm.
        self.decoder = type(backbone)(self.config)
        self.decoder.embed_tokens = None

    def forward(
        self,
        hidden: Tensor,  # [B, L, H] backbone states after the final norm
        token1: Tensor,  # [B, L, H] embedding of the first token of the next pair
        **kwargs: Any,  # attention_mask [B, L'], position_ids [B, L], past_key_values
    ) -> Tensor:  # [B, L, H]
        fused = self.fc(torch.cat([self.pre_fc_norm_embedding(token1), self.pre_fc_norm_hidden(hidden)], dim=-1))
        out: Tensor = self.decoder(inputs_embeds=fused, **kwargs).last_hidden_state
        return out

    @torch.no_grad()
    def grow(self, backbone: Any) -> None:
        """Start from the backbone: its last full-attention layer and final norm; the fusion passes h through."""
        types = getattr(backbone.config, "layer_types", None) or ["full_attention"] * len(backbone.layers)
        last = max(i for i, kind in enumerate(types[: len(backbone.layers)]) if kind == "full_attention")
        self.decoder.layers[0].load_state_dict(backbone.layers[last].state_dict())
        self.decoder.norm.load_state_dict(backbone.norm.state_dict())
        size = self.config.hidden_size
        identity = torch.eye(size, dtype=self.fc.weight.dtype, device=self.fc.weight.device)
        self.fc.weight.copy_(torch.cat([identity, identity], dim=1) * 0.5)
