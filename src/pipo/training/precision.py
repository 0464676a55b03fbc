"""In what precision weights are held: what is trained in float32, what is frozen in the checkpoint's own.

Under autocast (`trainer.bf16`) both compute in bfloat16, in training, in rollouts and in the teacher alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, TrainingArguments
from transformers.integrations import is_fsdp_enabled

from pipo.convert.base import cpu_lacks_bfloat16
from pipo.convert.shipped import resolve
from pipo.errors import UsageError
from pipo.training.recipe import Recipe


def frozen_dtype(recipe: Recipe, args: TrainingArguments) -> torch.dtype:
    """Of weights that are not trained, and of the teacher: the recipe's `dtype`, or what the checkpoint is in.

    bfloat16 needs autocast to it, or float32 modules would meet bfloat16 inputs. A CPU without its instructions and
    FSDP, whose shards have one precision, hold float32. Raises `UsageError` that names the field.
    """
    wanted = recipe.dtype
    if wanted == "bfloat16" and not args.bf16:
        raise UsageError("dtype", "bfloat16 goes with bfloat16 autocast", "set trainer.bf16=true, or dtype=float32")
    if wanted == "bfloat16" and is_fsdp_enabled():
        raise UsageError(
            "dtype", "FSDP shards weights of one precision, and what is trained is float32", "leave it out"
        )
    slow = args.use_cpu and cpu_lacks_bfloat16()
    if wanted == "auto":
        held = args.bf16 and not slow and not is_fsdp_enabled() and checkpoint_dtype(recipe.model) == torch.bfloat16
        wanted = "bfloat16" if held else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def checkpoint_dtype(model: str) -> torch.dtype:
    """What a folder or hub id is saved in; float32 where it does not say."""
    source = resolve(model)
    if source.endswith(".gguf"):
        return torch.float32
    config: Any = AutoConfig.from_pretrained(source)
    return config.dtype or config.get_text_config().dtype or torch.float32


def train_in_float32(model: nn.Module) -> None:
    """Cast what is trained; the optimizer's updates are smaller than bfloat16's steps."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
