"""The rotary scaling of a GGUF file: Llama 3.1 and later keep it as a tensor, which transformers does not read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipo.errors import UsageError

NAME = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTORS = (8.0, 32.0)
"""Llama 3.1's and Llama 3.2's."""


def restore_scaling(config: Any, file: str) -> None:
    """Put the scaling that the file's tensor stands for into its config. Raises `UsageError` for an unknown one."""
    found = _divisors(file)
    if found is None:
        return
    theta = float((config.rope_parameters or {}).get("rope_theta", 10_000.0))
    for factor in FACTORS:
        if torch.allclose(found, llama3_divisors(len(found), theta, factor), rtol=1e-3):
            config.rope_parameters = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}
            return
    raise UsageError(file, f"its rotary scaling ({NAME}) is not known", "convert the Hugging Face folder instead")


def llama3_divisors(number: int, theta: float, factor: float) -> Tensor:  # -> [number]
    """By how much Llama 3's scaling divides each rotary frequency."""
    wave = 2 * math.pi * theta ** (torch.arange(number) / number)
    context = LLAMA3["original_max_position_embeddings"]
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = (context / wave - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return torch.where(wave < context / high, 1.0, torch.where(wave > context / low, factor, between))


def _divisors(file: str) -> Tensor | None:
    from gguf import GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    return torch.tensor(tensors[NAME].data).float() if NAME in tensors else None
