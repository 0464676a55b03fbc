"""Decoders that read a packed row: several examples, end to end, none of which sees another."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipo.errors import UsageError
from pipo.model.families import RECURRENT, is_recurrent, missing_kernels


def packed_inputs(decoder: Any, positions: Tensor) -> dict[str, Any]:  # [1, L], each example from 0
    """What `decoder` takes beside its inputs. transformers masks attention by the positions (sdpa, eager) or by
    the examples' ends (flash); layers with a recurrent state read example by example. Raises `UsageError`.
    """
    if positions.shape[0] != 1:
        raise UsageError("position_ids", f"{positions.shape[0]} packed rows", "pack the whole batch into one")
    starts = (positions[0] == 0).nonzero()[:, 0]
    ends = torch.cat([starts, starts.new_tensor([positions.shape[1]])]).int()
    longest = int(ends.diff().max())
    more = {}
    if missing_kernels() or not on_gpu(positions):
        separate_examples(decoder)
    elif is_recurrent(decoder):  # which example a position is of, for their convolution
        more["seq_idx"] = ((positions == 0).cumsum(-1) - 1).int()
    return more | {
        "position_ids": positions,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def separate_examples(decoder: Any) -> None:
    """Let layers with a recurrent state start anew with every example, where kernels that could are not there."""
    for module in decoder.modules():
        if type(module).__name__ in RECURRENT and "forward" not in module.__dict__:
            module.forward = partial(_one_by_one, module)


def _one_by_one(
    module: nn.Module, hidden_states: Tensor, cu_seq_lens_q: Tensor | None = None, **kwargs: Any
) -> Tensor:  # [1, L, H]
    forward = partial(type(module).forward, module)
    if cu_seq_lens_q is None:
        return forward(hidden_states, **kwargs)
    parts = hidden_states.split(cu_seq_lens_q.diff().tolist(), dim=1)
    return torch.cat([forward(part, **kwargs) for part in parts], dim=1)


def on_gpu(tensor: Tensor) -> bool:
    """Where the recurrent layers' kernels run."""
    return tensor.device.type == "cuda"
