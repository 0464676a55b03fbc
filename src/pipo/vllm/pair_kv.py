"""Attention and recurrent layers in units of pairs, under a scheduler that counts tokens.

A block of B tokens holds B / 2 entries. vLLM knows caches with several tokens an entry (`tokens_per_state`), so its
memory accounting needs no change; what the kernels are told is halved here.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.utils import NULL_BLOCK_ID
from vllm.v1.kv_cache_interface import FullAttentionSpec


def convert_layers(model: nn.Module) -> None:
    """Make every layer of a stock model that keeps a cache keep it in pairs."""
    for layer in model.modules():
        if isinstance(layer, MambaBase):
            if current_platform.is_cpu():
                let_one_position_be_read()
            stock: Any = layer.get_attn_backend()
            layer.get_attn_backend = _returns(pair_backend(stock))
        elif isinstance(layer, Attention):
            layer.__class__ = PairAttention
            layer.attn_backend = pair_backend(layer.attn_backend)
            kernels: Any = type(layer.impl)
            layer.impl.__class__ = pair_impl(kernels)


@functools.cache
def let_one_position_be_read() -> None:
    """vLLM's convolution for recurrent layers on a CPU fails where a step's prefills are one position in all.

    A prompt of one pair is that, so it is given a second sequence, whose state goes to the block that nobody reads.
    """
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    stock = gdn_attention._causal_conv1d_fwd_cpu

    @functools.wraps(stock)
    def convolve(
        *, x: Tensor, query_start_loc: Tensor, cache_indices: Tensor, has_initial_state: Tensor, **rest: Any
    ) -> Any:  # x [D, N], transposed in memory
        if x.shape[1] == 1:
            x = torch.cat([x.T, x.T]).T
            query_start_loc = torch.cat([query_start_loc, query_start_loc[-1:] + 1])
            cache_indices = torch.cat([cache_indices, torch.full_like(cache_indices[:1], NULL_BLOCK_ID)])
            has_initial_state = torch.cat([has_initial_state, torch.zeros_like(has_initial_state[:1])])
            return convolve(
                x=x,
                query_start_loc=query_start_loc,
                cache_indices=cache_indices,
                has_initial_state=has_initial_state,
                **rest,
            )[:, :1]
        return stock(
            x=x,
            query_start_loc=query_start_loc,
            cache_indices=cache_indices,
            has_initial_state=has_initial_state,
            **rest,
        )

    gdn_attention._causal_conv1d_fwd_cpu = convolve


def _returns(backend: Any) -> Any:
    return lambda: backend


class PairAttention(Attention):
    """A stock attention layer with one cache entry for two tokens."""

    def get_kv_cache_spec(self, vllm_config: Any) -> FullAttentionSpec:
        spec = super().get_kv_cache_spec(vllm_config)
        assert type(spec) is FullAttentionSpec, f"{self.layer_name}: {spec} is no full attention"
        return replace(spec, tokens_per_state=2)


def pair_metadata(tokens: CommonAttentionMetadata) -> CommonAttentionMetadata:
    """What the kernels read about a batch, in pairs. A dummy batch may be odd: it is rounded up."""

    def half(count: Any) -> Any:
        return None if count is None else (count + 1) // 2

    return tokens.replace(
        query_start_loc=half(tokens.query_start_loc),
        query_start_loc_cpu=half(tokens.query_start_loc_cpu),
        seq_lens=half(tokens.seq_lens),
        seq_lens_cpu_upper_bound=half(tokens.seq_lens_cpu_upper_bound),
        num_actual_tokens=half(tokens.num_actual_tokens),
        max_query_len=half(tokens.max_query_len),
        max_seq_len=half(tokens.max_seq_len),
        slot_mapping=tokens.slot_mapping[::2] >> 1,  # a padding slot stays -1
        positions=None if tokens.positions is None else tokens.positions[::2] // 2,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


@functools.cache
def pair_builder(stock: Any) -> Any:
    """A metadata builder that is told of pairs."""

    class PairBuilder(stock):
        supports_update_block_table = False

        def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
            changes: dict[str, Any] = {"block_size": kv_cache_spec.block_size // 2}
            if isinstance(kv_cache_spec, FullAttentionSpec):
                changes["tokens_per_state"] = 1
            super().__init__(replace(kv_cache_spec, **changes), *args, **kwargs)
            self.supports_update_block_table = False

        def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
            return super().build(common_prefix_len, pair_metadata(common_attn_metadata), *args, **kwargs)

    return PairBuilder


@functools.cache
def pair_impl(stock: Any) -> Any:
    """Kernels that write their entries themselves: the runner's slots are of tokens."""
    if not hasattr(stock, "do_kv_cache_update"):
        return stock  # already writes inside forward, from its metadata

    class PairImpl(stock):
        def forward(
            self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, *rest: Any, **kw: Any
        ) -> Any:
            if attn_metadata is not None and key is not None:
                slots = attn_metadata.slot_mapping
                rows = slice(len(slots))  # what only pads the batch has no slot
                self.do_kv_cache_update(layer, key[rows], value[rows], kv_cache, slots)
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, *rest, **kw)

    return PairImpl


@functools.cache
def pair_backend(stock: Any) -> Any:
    """An attention backend in pairs: its kernels' block of B entries is one of 2 B tokens."""

    class PairBackend(stock):
        forward_includes_kv_cache_update = True

        @staticmethod
        def get_builder_cls() -> Any:
            return pair_builder(stock.get_builder_cls())

        @staticmethod
        def get_impl_cls() -> Any:
            return pair_impl(stock.get_impl_cls())

        @staticmethod
        def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
            sizes = stock.get_supported_kernel_block_sizes(kv_cache_spec)
            return [MultipleOf(2 * size.base) if isinstance(size, MultipleOf) else 2 * size for size in sizes]

        @classmethod
        def supports_block_size(cls, block_size: int | None) -> bool:
            if block_size is None:
                return True
            supported: bool = stock.supports_block_size(block_size // 2)
            return supported and block_size % 2 == 0

        @classmethod
        def get_preferred_block_size(cls, default_block_size: int) -> int:
            preferred: int = stock.get_preferred_block_size(default_block_size // 2)
            return 2 * preferred

        @classmethod
        def full_cls_name(cls) -> tuple[str, str]:
            return (cls.__module__, f"Pair{stock.__name__}")

    return PairBackend
