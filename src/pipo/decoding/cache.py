"""KV caches that grow in place instead of being concatenated every step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

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

    def join(self, other: GrowingLayer) -> None:
        """Append the other's rows. The shorter of the two gets zeros at its left, which a mask has to hide."""
        width = max(self.get_seq_length(), other.get_seq_length())
        pairs = zip((self.keys, self.values), (other.keys, other.values), strict=True)
        self._buffers = tuple(torch.cat([_left_zeros(a, width), _left_zeros(b, width)]) for a, b in pairs)
        self.keys, self.values = self._buffers

    def drop_left(self, entries: int) -> None:
        """Forget the oldest entries of every row."""
        self._buffers = tuple(buffer[:, :, entries:].clone() for buffer in (self.keys, self.values))
        self.keys, self.values = self._buffers


def _left_zeros(states: Tensor, width: int) -> Tensor:  # [B, heads, T, D] -> [B, heads, width, D]
    return F.pad(states, (0, 0, width - states.shape[-2], 0))


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


def unjoinable(cache: DynamicCache) -> str | None:
    """The kind of a layer whose rows `join` cannot append, None where there is none."""
    kinds = (GrowingLayer, LinearAttentionLayer)
    return next((type(layer).__name__ for layer in cache.layers if type(layer) not in kinds), None)


def join(cache: DynamicCache, other: DynamicCache) -> None:
    """Append the rows of another cache of the same decoder; recurrent states have no length to pad."""
    for layer, new in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, GrowingLayer):
            layer.join(new)
            continue
        for states, added in ((layer.conv_states, new.conv_states), (layer.recurrent_states, new.recurrent_states)):
            for index, state in states.items():
                if state is not None:
                    states[index] = torch.cat([state, added[index]])


def drop_left(cache: DynamicCache, entries: int) -> None:
    """Forget entries that no row attends to any more."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.drop_left(entries)


def kv_bytes(cache: DynamicCache) -> int:
    """Bytes of attention keys and values that are in use (recurrent states are not counted: they do not grow)."""
    tensors = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
