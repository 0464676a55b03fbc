"""KV caches that grow in place instead of being concatenated every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SLACK = 128
"""Entries that are reserved beyond what is needed."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are views of larger buffers."""

    keys: Tensor
    values: Tensor
    _buffers: tuple[Tensor, ...]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers = (self.keys, self.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, new, D] states; returns all of them as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if self._buffers[0].numel() == 0 or end > self._buffers[0].shape[-2]:
            self._buffers = tuple(
                _enlarged(buffer, new, length, end)
                for buffer, new in zip(self._buffers, (key_states, value_states), strict=True)
            )
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows of the batch."""
        length = self.get_seq_length()
        if length:
            self._buffers = tuple(buffer.index_select(0, beam_idx) for buffer in self._buffers)
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _enlarged(old: Tensor, new: Tensor, length: int, end: int) -> Tensor:
    capacity = max(end + SLACK, length * 3 // 2)
    buffer = new.new_empty((*new.shape[:2], capacity, new.shape[-1]))
    if length:
        buffer[:, :, :length] = old[:, :, :length]
    return buffer


def make_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for one decoder; layers of other kinds (sliding, recurrent) stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def kv_bytes(cache: DynamicCache) -> int:
    """Bytes of attention keys and values that are in use (recurrent states are not counted: they do not grow)."""
    tensors = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
