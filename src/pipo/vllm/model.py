"""The served model: pipo's compressor, MTP head and confidence head around any stock vLLM decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model

from pipo.model.compressor import Compressor
from pipo.model.confidence import ConfidenceHead
from pipo.model.mtp import MtpHead, mtp_config
from pipo.model.shortlist import Shortlist, check_ids, first_ids
from pipo.vllm.pair_kv import convert_layers
from pipo.vllm.settings import backbone_architecture


class ServedPipo(nn.Module):
    """Reads token ids and token positions as vLLM's runner hands them out; inside, N tokens are N / 2 pairs.

    Small parts are not sharded: every tensor-parallel rank holds compressor, fusion and confidence head whole.
    """

    is_text_generation_model = True
    weight_names = WeightsMapper(
        orig_to_new_prefix={"backbone.": "backbone.model.", "lm_head.": "backbone.lm_head."},
    )

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        config = model_config.hf_config
        names = [backbone_architecture(model_config)]
        self.config, self.pad = config, config.pad_token_id
        self.backbone = init_vllm_registered_model(
            vllm_config, prefix="backbone", hf_config=config.backbone_config, architectures=names
        )
        decoder = self.backbone.model

        def norm(width: int) -> nn.Module:
            module: nn.Module = type(decoder.norm)(width, eps=getattr(config.backbone_config, "rms_norm_eps", 1e-6))
            return module

        self.compressor = Compressor(config.hidden_size, config.compressor, config.compressor_residual)
        one_layer = mtp_config(config.backbone_config)
        inner = vllm_config.with_hf_config(one_layer, architectures=names)
        inner.model_config.hf_text_config = one_layer  # some decoders read this one
        with set_model_tag("mtp"):
            self.mtp = MtpHead(one_layer, type(decoder)(vllm_config=inner, prefix="mtp.decoder"), norm)
        self.confidence_head = ConfidenceHead(config.hidden_size, norm(2 * config.hidden_size))
        self.draft_ids = first_ids(config.draft_vocab_size, config.vocab_size, config.pad_token_id)
        self.shortlist: Shortlist | None = None  # copied with the first draft
        convert_layers(self)
        self.requires_grad_(False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:  # [...] -> [..., H]
        out: Tensor = self.backbone.model.embed_tokens(input_ids)
        return out

    def forward(
        self,
        input_ids: Tensor,  # [N], whole pairs
        positions: Tensor,  # [N], of tokens
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:  # [N, H], the state of every pair twice: the runner picks rows by token
        if len(input_ids) % 2:  # of a dummy batch
            input_ids, positions = F.pad(input_ids, (0, 1)), F.pad(positions, (0, 1))
        latents = self.compressor(self.embed_input_ids(input_ids)[None])[0]
        hidden: Tensor = self.backbone(None, pair_positions(positions), None, latents)
        return hidden.repeat_interleave(2, dim=0)

    def draft(self, hidden: Tensor, token1: Tensor, positions: Tensor) -> Tensor:  # [L, H], [L], [L] -> [L, H]
        """MTP states of the pairs with these states, each followed by `token1`. `positions` are of pairs."""
        fused = self.mtp.fuse(hidden, self.embed_input_ids(token1))
        out: Tensor = self.mtp.decoder(None, positions, None, fused)
        return out

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:  # [B, H] -> [B, V]
        """PAD is never sampled."""
        logits: Tensor | None = self.backbone.compute_logits(hidden_states)
        if logits is not None:
            logits[:, self.pad] = float("-inf")
        return logits

    def draft_logits(self, states: Tensor) -> Tensor | None:  # [B, H] -> [B, V]
        """The same for MTP states; -inf outside of the shortlist, where there is one."""
        if self.draft_ids is None:
            return self.compute_logits(states)
        if self.shortlist is None:
            head = self.backbone.lm_head.weight[: self.config.vocab_size]
            self.shortlist = Shortlist(self.draft_ids.to(head.device), head)
        return self.shortlist.logits(states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """From a PIPO folder."""
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(self._without_shortlist(weights), mapper=self.weight_names)
        self.shortlist = None
        return loaded

    def _without_shortlist(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Keep the list of tokens, which vLLM's loader does not know; hand on the rest."""
        for name, tensor in weights:
            if name == "draft_ids":
                self.draft_ids = check_ids(tensor, self.config.vocab_size, self.config.pad_token_id)
            else:
                yield name, tensor


class ServedHybridPipo(ServedPipo, HasInnerState, IsHybrid):
    """With a backbone that has recurrent layers (Qwen3.5). The shapes of their states are the stock class's own."""

    @staticmethod
    def _stock(vllm_config: Any) -> Any:
        model_config = vllm_config.model_config
        return ModelRegistry.resolve_model_cls(backbone_architecture(model_config), model_config=model_config)[0]

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, ...]:
        out: tuple[torch.dtype, ...] = cls._stock(vllm_config).get_mamba_state_dtype_from_config(vllm_config)
        return out

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> tuple[tuple[int, ...], ...]:
        out: tuple[tuple[int, ...], ...] = cls._stock(vllm_config).get_mamba_state_shape_from_config(vllm_config)
        return out

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        from vllm.model_executor.models.qwen3_5 import Qwen3_5ForCausalLM

        return Qwen3_5ForCausalLM.get_mamba_state_copy_func()


def pair_positions(positions: Tensor) -> Tensor:  # [N] of tokens, or [3, N] -> [N / 2] of pairs, or [3, N / 2]
    """Rotary positions count pairs."""
    return positions[..., ::2] // 2
