"""`pipo sft --dry-run`: steps and memory of a recipe, without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipo.base import load_tokenizer
from pipo.drafted import new_mtp
from pipo.losses import CHUNK
from pipo.shipped import adapter_of, resolve
from pipo.training.recipe import Lora, SftRecipe
from pipo.training.sft import NEW_MODULES, chats, train_arguments

GB = 1e9
ACTIVATION_FLOATS = (16, 4)
"""Floats kept for backward per position and layer: times hidden size, times intermediate size. A rough count."""


def estimate(recipe: SftRecipe) -> dict[str, Any]:
    """Examples, steps and gigabytes (float32 training with Adam). Raises `UsageError` as training would."""
    args = train_arguments(recipe)
    data = chats(recipe, recipe.data.train, load_tokenizer(resolve(recipe.model)))
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(len(data) / per_step) * math.ceil(args.num_train_epochs)
    model = _skeleton(recipe)
    head = _head_size(model) if recipe.objective == "mtp" else 0
    total = sum(p.numel() for p in model.parameters()) + head
    trained = _trained(model, recipe.lora) if recipe.lora else head or total
    longest = max(data.lengths)
    positions = args.per_device_train_batch_size * (longest / 2 if recipe.objective == "pipo" else longest)
    floats = _floats_per_position(model.config.get_text_config(), 1 if head else None)
    return {
        "examples": len(data),
        "left_out": len(data.problems),
        "tokens": sum(data.lengths),
        "longest": longest,
        "examples_per_step": per_step,
        "steps": steps,
        "parameters": total,
        "trained_parameters": trained,
        "weights_gb": 4 * total / GB,
        "gradients_and_adam_gb": 12 * trained / GB,
        "activations_gb": 4 * positions * floats / GB,
        "logits_gb": 3 * 4 * CHUNK * model.config.get_text_config().vocab_size / GB,
    }


def _skeleton(recipe: SftRecipe) -> Any:
    """The model without its weights."""
    import pipo  # noqa: F401 - registers the model type

    config = AutoConfig.from_pretrained(resolve(recipe.model))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def _head_size(model: Any) -> int:
    """Parameters of an MTP head of this base."""
    with torch.device("meta"):
        return sum(p.numel() for p in new_mtp(model).parameters())


def _adapter(folder: Path) -> Lora:
    """The shape of a trained adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return Lora(rank=config["r"], targets=config["target_modules"], full=config["modules_to_save"] or [])


def _trained(model: Any, lora: Lora) -> int:
    if lora.adapter is not None:
        lora = _adapter(adapter_of(lora.adapter))
    full = lora.full if lora.full is not None else (NEW_MODULES if model.config.model_type == "pipo" else [])
    targets = lora.targets if isinstance(lora.targets, list) else None
    count = 0
    for name, module in model.named_modules():
        inside = any(part in name.split(".") for part in full)
        if name in full:
            count += sum(p.numel() for p in module.parameters())
        elif isinstance(module, nn.Linear) and not inside and (targets is None or name.split(".")[-1] in targets):
            count += (lora.rank or 0) * (module.in_features + module.out_features)
    return count


def _floats_per_position(config: Any, layers: int | None = None) -> float:
    """Of the model's layers, or of the `layers` that gradients go through."""
    hidden, inner = ACTIVATION_FLOATS
    return float(
        (layers or config.num_hidden_layers) * (hidden * config.hidden_size + inner * config.intermediate_size)
    )
