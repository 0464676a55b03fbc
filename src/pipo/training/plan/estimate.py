"""`--dry-run`: steps and memory of a recipe, without training."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from pipo.convert.base import load_tokenizer
from pipo.convert.shipped import adapter_of, resolve
from pipo.data.layout import lay_out
from pipo.model.families import kv_bytes_per_token, missing_kernels
from pipo.model.mtp_base import DraftedBase, new_mtp
from pipo.training.distill.run import compare_by, prepare
from pipo.training.divergence import Compare, soft_labels
from pipo.training.plan.simulate import StepMemory, stand_in, step_memory
from pipo.training.precision import frozen_dtype, train_in_float32
from pipo.training.recipe import DistillRecipe, Lora, SftRecipe
from pipo.training.regular import use_chunked_loss
from pipo.training.sft import NEW_MODULES, add_lora, chats, train_arguments
from pipo.training.teacher import Teacher

GB = 1e9


def estimate(recipe: SftRecipe | DistillRecipe) -> dict[str, Any]:
    """Examples, steps, and gigabytes of one process. Raises `UsageError` as training would.

    Memory is that of the longest batch; a rollout's answers are taken to be as long as they may be, every draft
    rejected. The rollout's cache and a step's activations are not there at the same time. What ranks keep to exchange
    gradients comes on top.
    """
    args = train_arguments(recipe)
    if isinstance(recipe, SftRecipe):
        data: Any = chats(recipe, recipe.data.train, load_tokenizer(resolve(recipe.model)))
        of_kind, source = {"examples": len(data)}, recipe.loss.teacher
    else:
        data, source = prepare(recipe)[1], recipe.teacher
        of_kind = {"prompts": len(data), "longest_answer": recipe.rollout.max_new_tokens}
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    memory = measure(recipe, args, data)
    taught_by = 0 if source is None else size(source)
    held = frozen_dtype(recipe, args).itemsize
    return {
        **of_kind,
        "left_out": len(data.problems),
        "tokens": int(data.lengths.sum()),
        "longest": int(data.lengths.max()),
        "examples_per_step": per_step,
        "steps": args.max_steps
        if args.max_steps > 0
        else math.ceil(math.ceil(len(data) / per_step) * args.num_train_epochs),
        "parameters": memory.parameters,
        "trained_parameters": memory.trained,
        "teacher_parameters": taught_by,
        "weights_gb": (memory.weights - held * taught_by) / GB,
        "teacher_weights_gb": held * taught_by / GB,
        "adam_gb": memory.adam / GB,
        "gradients_activations_logits_gb": memory.step / GB,
        "peak_gb": memory.total / GB,
        **({} if isinstance(recipe, SftRecipe) else {"rollout_cache_gb": rollout_cache(recipe, args, data) / GB}),
    }


def rollout_cache(recipe: DistillRecipe, args: TrainingArguments, prompts: Any) -> float:
    """Bytes of the caches of a batch that is answered."""
    config = AutoConfig.from_pretrained(resolve(recipe.model)).get_text_config()
    _, kv_bytes = kv_bytes_per_token(config, torch.bfloat16 if args.bf16 else torch.float32)
    pairs = math.ceil(int(prompts.lengths.max()) / 2) + recipe.rollout.max_new_tokens
    return args.per_device_train_batch_size * pairs * 2 * kv_bytes


def size(source: str) -> int:
    """Parameters of a model, tied ones once."""
    with torch.device("meta"):
        return sum(p.numel() for p in skeleton(source).parameters())


def measure(
    recipe: SftRecipe | DistillRecipe, args: TrainingArguments, data: Any, kernels: bool | None = None
) -> StepMemory:
    """The memory of the recipe's longest batch. `kernels`: of recurrent layers, None is as they are installed here."""
    rows, row = args.per_device_train_batch_size, longest_row(recipe, data)
    packing = isinstance(recipe, SftRecipe) and recipe.data.packing
    rows, row = (1, rows * row) if packing else (rows, row)
    return step_memory(
        partial(student, recipe, args),
        partial(teacher, recipe, args),
        rows,
        row + -row % recipe.pad_to_multiple_of,
        attention=recipe.attention,
        masked=packing or rows > 1,
        bf16=args.bf16,
        checkpoint=args.gradient_checkpointing,
        kernels=not missing_kernels() if kernels is None else kernels,
    )


def longest_row(recipe: SftRecipe | DistillRecipe, data: Any) -> int:
    """Token positions of the longest example, with as many PADs as it can get."""
    if isinstance(recipe, DistillRecipe):  # one token a pair at worst
        return int(data.lengths.max()) + 1 + 2 * recipe.rollout.max_new_tokens
    longest = data[int(data.lengths.argmax())]
    if recipe.objective != "pipo":
        return len(longest["input_ids"])
    pads = recipe.pads
    laid = lay_out(longest["input_ids"], longest["labels"], 0, pads.scheme, pads.max_ratio, random.Random(0))
    return len(laid.ids)


def student(recipe: SftRecipe | DistillRecipe, args: TrainingArguments) -> Any:
    """The model that is trained, with its adapters, made from its config."""
    lora, mtp = recipe.lora, isinstance(recipe, SftRecipe) and recipe.objective == "mtp"
    model = skeleton(recipe.model, frozen_dtype(recipe, args) if lora is not None or mtp else torch.float32)
    if mtp:
        return Counted(model.eval().requires_grad_(False))
    pipo = model.config.model_type == "pipo"
    if not pipo:
        use_chunked_loss(model)
    if lora is not None:
        if lora.adapter is not None:
            lora = adapter_shape(lora.adapter)
        model = add_lora(model, lora, lora.full if lora.full is not None else NEW_MODULES if pipo else [])
        train_in_float32(model)
    return model


class Counted(DraftedBase):
    """An uncompressed base with an MTP head, the base among its modules."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, new_mtp(base).float())
        self.counted = base

    def set_attn_implementation(self, name: str) -> None:
        for decoder in (self.base, self.mtp.decoder):
            decoder.set_attn_implementation(name)


def skeleton(source: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model made from its config."""
    import pipo  # noqa: F401 - registers the model type

    config = AutoConfig.from_pretrained(resolve(source))
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def adapter_shape(source: str) -> Lora:
    """A trained adapter, as the recipe of a new one."""
    config = json.loads((adapter_of(source) / "adapter_config.json").read_text())
    return Lora(rank=config["r"], targets=config["target_modules"], full=config["modules_to_save"] or [])


def teacher(recipe: SftRecipe | DistillRecipe, args: TrainingArguments, model: Any) -> Teacher | None:
    """Who teaches `model`, None where nobody does."""
    compare: Compare
    if isinstance(recipe, SftRecipe):
        source, compare = recipe.loss.teacher, partial(soft_labels, weight=recipe.loss.teacher_weight)
        if source is None:
            return None
    else:
        source, compare = recipe.teacher, compare_by(recipe.divergence)
        if source is None:
            return Teacher.with_adapter_off(model, compare, model.config.pad_token_id)
    frozen = skeleton(source, frozen_dtype(recipe, args)).eval().requires_grad_(False)
    frozen.set_attn_implementation(stand_in(recipe.attention, False))
    return Teacher.of(frozen, compare, model.config.pad_token_id)
