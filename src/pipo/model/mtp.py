"""Pair-out: the MTP head that drafts token 2 from the backbone's state and token 1 (paper sec. 3.1, eq. 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


def norm_like(backbone: Any) -> Callable[[int], nn.Module]:
    """Width -> a new norm of the backbone's kind."""
    return lambda width: type(backbone.norm)(width, eps=getattr(backbone.config, "rms_norm_eps", 1e-6))


def head_of(backbone: Any) -> MtpHead:
    """A new head for a transformers backbone, of its own classes."""
    config = mtp_config(backbone.config)
    without_words = copy.deepcopy(config)  # the head has no embedding of its own
    without_words.vocab_size, without_words.pad_token_id = 1, None
    decoder = type(backbone)(without_words)
    decoder.config.vocab_size = config.vocab_size
    return MtpHead(config, decoder, norm_like(backbone))


class MtpHead(nn.Module):
    """Fuses [norm(e(token 1)); norm(h)], then one decoder layer and a final norm of the backbone's own classes.

    The layer attends causally over the fused states of all earlier pairs, at the positions of the pairs whose backbone
    states it reads. Entry i of its cache depends on token 1 of pair i+1 alone, so a rejected draft leaves no trace.
    """

    def __init__(
        self,
        config: PreTrainedConfig,  # of one layer, see `mtp_config`
        decoder: Any,  # the backbone's class made from it: brings masks, rotary embedding, cache handling, final norm
        norm: Callable[[int], nn.Module],  # size -> module of the backbone's kind
    ) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.pre_fc_norm_embedding = norm(size)
        self.pre_fc_norm_hidden = norm(size)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.decoder = decoder
        self.decoder.embed_tokens = None

    def forward(
        self,
        hidden: Tensor,  # [B, L, H] backbone states after the final norm
        token1: Tensor,  # [B, L, H] embedding of the first token of the next pair
        **kwargs: Any,  # attention_mask [B, L'], position_ids [B, L], past_key_values
    ) -> Tensor:  # [B, L, H]
        out: Tensor = self.decoder(inputs_embeds=self.fuse(hidden, token1), **kwargs).last_hidden_state
        return out

    def fuse(self, hidden: Tensor, token1: Tensor) -> Tensor:  # [..., H], [..., H] -> [..., H]
        """What the decoder layer reads."""
        out: Tensor = self.fc(torch.cat([self.pre_fc_norm_embedding(token1), self.pre_fc_norm_hidden(hidden)], dim=-1))
        return out

    @torch.no_grad()
    def grow(self, backbone: Any) -> None:
        """Start from the backbone: its last full-attention layer and its final norm copied, the fusion the mean of its
        two normalised inputs. Its first drafts are confidently wrong, yet of the starts that docs/results compares it
        trained best.
        """
        types = getattr(backbone.config, "layer_types", None) or ["full_attention"] * len(backbone.layers)
        last = max(i for i, kind in enumerate(types[: len(backbone.layers)]) if kind == "full_attention")
        self.decoder.layers[0].load_state_dict(backbone.layers[last].state_dict())
        self.decoder.norm.load_state_dict(backbone.norm.state_dict())
        self.fc.weight.copy_(torch.eye(self.config.hidden_size).repeat(1, 2) / 2)
