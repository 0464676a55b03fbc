"""The memory of one training step, counted tensor by tensor on a model without data.

Forward and backward run on fake tensors, which have shapes and no contents, so any size can be counted anywhere. What
is counted is what torch allocates; workspaces inside kernels are not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.qwen3_5 import modeling_qwen3_5

from pipo.training.teacher import Teacher

ADAM = 8
"""Bytes that Adam keeps for a trained parameter."""

CHUNK = 64
"""Positions of one chunk of the recurrent kernel."""

FUSED, MASKED = "pipo_counted", "pipo_counted_masked"
"""Stand-ins for kernels of fused attention: without a mask, and with one of a number per query and key."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes. `step` is the most that gradients, activations and logits take at one time beside the rest."""

    parameters: int
    trained: int
    weights: int
    adam: int
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.adam + self.step


def step_memory(
    build: Callable[[], Any],
    teach: Callable[[Any], Teacher | None],
    rows: int,
    length: int,
    *,
    attention: str,
    masked: bool,
    bf16: bool,
    checkpoint: bool,
    kernels: bool,
) -> StepMemory:
    """Of a batch of `rows` x `length` tokens, all of them targets.

    build, teach: make the model and its teacher (None: it has none), without weights.
    attention: the recipe's; `eager` is counted as it is, all others as a fused kernel, with a mask where rows differ
    in length or are packed (`masked`, which kernels of flash attention do without).
    kernels: recurrent layers are counted as their kernels, too; else as the reference that runs without them.
    """
    with torch.device("meta"):
        model = build()
    with FakeTensorMode(), _recurrence() if kernels else contextlib.nullcontext(), _Ledger() as ledger:
        teacher = teach(pretend(model))
        model.train().set_attn_implementation(stand_in(attention, masked))
        if checkpoint:
            model.gradient_checkpointing_enable()
        weights = ledger.restart()
        ids = torch.ones(rows, length, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with _AllTargets(), torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            more = {} if teacher is None else {"teacher": teacher.read(batch)}
            loss = model(input_ids=ids, labels=ids, **more).loss
        loss.backward()
        step = ledger.peak - weights
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepMemory(sum(p.numel() for p in model.parameters()), trained, weights, ADAM * trained, step)


def pretend(model: nn.Module) -> nn.Module:
    """Give a model that is on the meta device fake tensors of the CPU."""
    made: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


class _Ledger(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def restart(self) -> int:
        """Forget the peak so far; what is alive."""
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf.untyped_storage())
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        self.alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


class _AllTargets(TorchFunctionMode):
    """Choosing by a mask of unknown contents chooses everything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].dim() - 1).clone()
        return func(*args, **(kwargs or {}))


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its inputs, its output, a number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1])
        normalizer = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, normalizer, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(torch.empty_like(x) for x in ctx.saved_tensors[:3]), None)


def _fused(
    module: nn.Module,  # attention layer
    query: Tensor,  # [B, heads, L, D]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # bool [B, 1, L, L]
    **_: Any,
) -> tuple[Tensor, None]:  # [B, L, heads, D]
    mask = None if attention_mask is None else attention_mask.to(query.dtype)
    return _FusedAttention.apply(query, key, value, mask), None


class _FusedRecurrence(torch.autograd.Function):
    """Keeps what flash-linear-attention's chunked kernel keeps: its inputs, and a block of CHUNK numbers a position.

    The states between chunks are there while it runs, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        batch, length, heads, width = query.shape
        states = value.new_empty(batch, -(-length // CHUNK), heads, width, value.shape[-1])
        block = value.new_empty(batch, length, heads, CHUNK)
        ctx.save_for_backward(query, key, value, g, beta, block)
        ctx.states = states.shape
        return torch.empty_like(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states = grad.new_empty(ctx.states), grad.new_empty(ctx.states)  # noqa: F841 - alive here
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:5])


def _recurrence() -> Any:
    """While it lasts, recurrent layers call the stand-in."""

    def rule(query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor, **_: Any) -> tuple[Tensor, None]:
        return _FusedRecurrence.apply(query, key, value, g, beta), None

    return mock.patch.object(modeling_qwen3_5, "torch_chunk_gated_delta_rule", rule)


def stand_in(attention: str, masked: bool) -> str:
    """The name of what is counted in place of a kernel."""
    if attention == "eager":
        return attention
    return MASKED if masked and attention == "sdpa" else FUSED


AttentionInterface.register(FUSED, _fused)
AttentionInterface.register(MASKED, _fused)
AttentionMaskInterface.register(FUSED, lambda *_, **__: None)
AttentionMaskInterface.register(MASKED, sdpa_mask)
