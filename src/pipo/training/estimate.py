"""`pipo sft --dry-run`, `pipo distill --dry-run`: steps and memory of a recipe, without training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from pipo.base import load_tokenizer
from pipo.drafted import new_mtp
from pipo.inspect_model import kv_bytes_per_token
from pipo.losses import CHUNK
from pipo.shipped import adapter_of, resolve
from pipo.training.distill import prepare
from pipo.training.recipe import DistillRecipe, Lora, SftRecipe
from pipo.training.sft import NEW_MODULES, chats, train_arguments

GB = 1e9
ACTIVATION_FLOATS = (16, 4)
"""Floats kept for backward per position and layer: times hidden size, times intermediate size. A rough count."""


def estimate(recipe: SftRecipe) -> dict[str, Any]:
    """Examples, steps and gigabytes (float32 training with Adam). Raises `UsageError` as training would."""
    args = train_arguments(recipe)
    data = chats(recipe, recipe.data.train, load_tokenizer(resolve(recipe.model)))
    model = _skeleton(recipe.model)
    head = _head_size(model) if recipe.objective == "mtp" else 0
    longest = max(data.lengths)
    positions = args.per_device_train_batch_size * (longest / 2 if recipe.objective == "pipo" else longest)
    return {
        "examples": len(data),
        "left_out": len(data.problems),
        "tokens": sum(data.lengths),
        "longest": longest,
        **_steps(args, len(data)),
        **_memory(model, recipe.lora, positions, head),
    }


def estimate_distill(recipe: DistillRecipe) -> dict[str, Any]:
    """As `estimate`, with rollout and teacher; answers are taken to be as long as they may be, every draft rejected.

    The rollout's cache and the training step's activations are not there at the same time.
    """
    args = train_arguments(recipe)
    _, prompts = prepare(recipe)
    model = _skeleton(recipe.model)
    config = model.config.get_text_config()
    rows, new = args.per_device_train_batch_size, recipe.rollout.max_new_tokens
    longest = max(prompts.lengths)
    slots = rows * (math.ceil(longest / 2) + new)
    _, kv_bytes = kv_bytes_per_token(config, torch.float32)
    memory = _memory(model, recipe.lora, slots)
    teacher = None if recipe.teacher is None else _skeleton(recipe.teacher)
    read = config if teacher is None else teacher.config.get_text_config()
    memory["logits_gb"] += 3 * 4 * CHUNK * read.vocab_size / GB
    return {
        "prompts": len(prompts),
        "left_out": len(prompts.problems),
        "tokens": sum(prompts.lengths),
        "longest": longest,
        "longest_answer": new,
        **_steps(args, len(prompts)),
        **memory,
        "rollout_cache_gb": slots * 2 * kv_bytes / GB,
        "teacher_parameters": 0 if teacher is None else _size(teacher),
        "teacher_weights_gb": 0.0 if teacher is None else 4 * _size(teacher) / GB,
        "teacher_states_gb": 2 * 4 * 2 * slots * read.hidden_size / GB,  # of the clean text, and at the pairs' places
    }


def _steps(args: TrainingArguments, examples: int) -> dict[str, int]:
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(examples / per_step) * math.ceil(args.num_train_epochs)
    return {"examples_per_step": per_step, "steps": steps}


def _memory(model: Any, lora: Lora | None, positions: float, head: int = 0) -> dict[str, Any]:
    """Parameters, and gigabytes of a training step over so many positions of the backbone.

    `head`: parameters of an MTP head that is trained alone, 0 where the model itself is trained.
    """
    config = model.config.get_text_config()
    total = _size(model) + head
    trained = _trained(model, lora) if lora else head or total
    return {
        "parameters": total,
        "trained_parameters": trained,
        "weights_gb": 4 * total / GB,
        "gradients_and_adam_gb": 12 * trained / GB,
        "activations_gb": 4 * positions * _floats_per_position(config, 1 if head else None) / GB,
        "logits_gb": 3 * 4 * CHUNK * config.vocab_size / GB,
    }


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _skeleton(source: str) -> Any:
    """A model without its weights."""
    import pipo  # noqa: F401 - registers the model type

    config = AutoConfig.from_pretrained(resolve(source))
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
