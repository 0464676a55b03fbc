"""Supervised fine-tuning: `pipo sft`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from transformers.modeling_layers import GradientCheckpointingLayer

from pipo.convert.base import load_base, load_tokenizer, warn_slow_bfloat16
from pipo.convert.pad_token import turn_ends
from pipo.convert.save import save_model
from pipo.convert.shipped import adapter_of, resolve
from pipo.data.batch import Collator
from pipo.data.chat import refuse_problems
from pipo.data.datasets import ChatDataset, PairDataset, PromptDataset
from pipo.data.packing import Packer
from pipo.errors import UsageError, first_line
from pipo.model.families import LORA_TARGETS, has_trained_mtp, text_config, warn_slow_layers
from pipo.model.mtp_base import DraftedBase, grown_mtp, load_mtp, save_mtp
from pipo.training.checkpoint import last_checkpoint, whole_model
from pipo.training.precision import checkpoint_dtype, frozen_dtype, train_in_float32
from pipo.training.recipe import DistillRecipe, Files, Lora, SftRecipe
from pipo.training.teacher import check_same_tokens
from pipo.training.trainer import PairTrainer, StepTrainer, draft_counts, next_token_counts

log = logging.getLogger("pipo")

DataT = TypeVar("DataT", ChatDataset, PromptDataset)

NEW_MODULES = ["compressor", "mtp", "confidence_head"]
"""Trained whole beside adapters: they are new, or small."""

FIXED: dict[str, Any] = {
    "remove_unused_columns": False,
    "prediction_loss_only": True,
    "label_names": ["labels"],
    "average_tokens_across_devices": True,  # the losses are normalised over all ranks
}
"""Fields of TrainingArguments that are not the recipe's."""


def train_arguments(recipe: SftRecipe | DistillRecipe) -> TrainingArguments:
    """The recipe's `trainer` section over our defaults."""
    defaults: dict[str, Any] = {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": 10,
        "save_steps": 100,
        "save_total_limit": 2,
        "eval_strategy": "steps" if getattr(recipe.data, "eval", None) else "no",
        "report_to": "none",
        "seed": 0,
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
        "ddp_find_unused_parameters": False,  # every loss reaches all that is trained
    }
    for key in FIXED.keys() & recipe.trainer.keys():
        raise UsageError(f"trainer.{key}", f"is always {FIXED[key]}", "leave it out")
    try:
        args = TrainingArguments(output_dir=recipe.output, **{**defaults, **recipe.trainer, **FIXED})
    except (TypeError, ValueError) as error:
        raise UsageError("trainer", str(error).splitlines()[0], "see transformers.TrainingArguments") from error
    check_processes(args)
    check_strategy(args)
    if args.use_cpu and args.bf16:
        warn_slow_bfloat16("trainer.bf16")
    return args


def check_processes(args: TrainingArguments) -> None:
    """One process a GPU: transformers would cut a batch to pieces, whose losses are not normalised together."""
    if args.world_size == 1 and args.n_gpu > 1:
        raise UsageError(
            "trainer",
            f"one process sees {args.n_gpu} GPUs",
            f"start `accelerate launch --num_processes {args.n_gpu} -m pipo_cli ...`, or set CUDA_VISIBLE_DEVICES=0",
        )


def check_strategy(args: TrainingArguments) -> None:
    """Refuse what ranks cannot share here."""
    if args.train_sampling_strategy not in ("random", "sequential", "group_by_length"):
        raise UsageError(
            "trainer.train_sampling_strategy",
            f"{args.train_sampling_strategy!r} is not supported",
            "use group_by_length",
        )
    if is_deepspeed_zero3_enabled():
        raise UsageError("DeepSpeed", "ZeRO-3 is not supported", "use ZeRO-2 (runs/deepspeed_zero2.json) or FSDP2")


def add_lora(model: PreTrainedModel, lora: Lora, full: list[str]) -> Any:
    """Adapters on the backbone, new or trained before; the modules in `full` are trained whole."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if lora.adapter is not None:
        folder = adapter_of(lora.adapter)
        if not (folder / "adapter_config.json").is_file():
            raise UsageError("lora.adapter", f"{folder} holds no adapter", "name the `adapter` folder of a run")
        try:
            return PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        except KeyError as error:
            raise UsageError(
                "lora.adapter", f"{folder} lacks {error}", "start from the model that it was trained on"
            ) from error
    assert lora.rank is not None
    untied = [name for name in full if name.split(".")[-1] in ("lm_head", "embed_tokens")]
    if untied and text_config(model.config).tie_word_embeddings:
        problem = f"{untied[0]} shares its weights with the other end of the model, and a copy would part them"
        raise UsageError("lora.full", problem, "leave it out, or train the whole model without `lora`")
    alpha: Any = lora.alpha if lora.alpha is not None else 2 * lora.rank  # peft's annotation says int
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets or LORA_TARGETS[text_config(model.config).model_type],
        modules_to_save=full or None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError("lora", first_line(error), "see the model's layers with `pipo inspect`") from error


def sft(recipe: SftRecipe, *, resume: bool = False) -> None:
    """Train by the recipe and save the result in its output folder. Raises `UsageError`."""
    args = train_arguments(recipe)
    checkpoint = last_checkpoint(recipe.output, resume, args.world_size)
    tokenizer = load_tokenizer(resolve(recipe.model))
    make = {"pipo": pair_trainer, "regular": regular_trainer, "mtp": mtp_trainer}[recipe.objective]
    trainer = make(recipe, args, tokenizer)
    trainer.run(checkpoint)
    save(trainer, tokenizer, recipe, lambda: student(recipe, args))


def student(recipe: SftRecipe | DistillRecipe, args: TrainingArguments) -> Any:
    """The model that a recipe starts from, with its adapters: float32 what is trained, `frozen_dtype` what is not."""
    set_seed(args.seed)
    if isinstance(recipe, SftRecipe) and recipe.objective == "mtp":
        return load_drafted(recipe, frozen_dtype(recipe, args))
    regular = isinstance(recipe, SftRecipe) and recipe.objective == "regular"
    dtype = torch.float32 if recipe.lora is None else frozen_dtype(recipe, args)
    model, full = (load_control(recipe, dtype), []) if regular else (load_student(recipe, dtype), NEW_MODULES)
    if recipe.lora is not None:
        model = add_lora(model, recipe.lora, full if recipe.lora.full is None else recipe.lora.full)
        train_in_float32(model)
    if isinstance(recipe, SftRecipe) and recipe.compile:
        compile_layers(model)
    warn_slow_layers(model, args.device)
    return model


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer in place, for any length. Raises `UsageError` where there is no compiler."""
    if not torch.accelerator.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("compile", "needs a C++ compiler on a CPU, and there is no g++", "install it, or leave it out")
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=True)


def load_control(recipe: SftRecipe | DistillRecipe, dtype: torch.dtype) -> Any:
    """The uncompressed model, with a loss that never holds the logits of a whole batch."""
    from pipo.training.regular import use_chunked_loss

    return use_chunked_loss(plain_base(recipe, dtype))


def load_drafted(recipe: SftRecipe, dtype: torch.dtype) -> DraftedBase:
    """The MTP head of an uncompressed base that stays as it is: its trained one, or a new one grown from it."""
    base = plain_base(recipe, dtype).eval().requires_grad_(False)
    source = resolve(recipe.model)
    head = load_mtp(base, source) if has_trained_mtp(source, text_config(base.config)) else grown_mtp(base)
    return DraftedBase(base, head.float())


def plain_base(recipe: SftRecipe | DistillRecipe, dtype: torch.dtype) -> Any:
    """The uncompressed model that a recipe starts from."""
    return load_base(resolve(recipe.model), dtype=dtype, attn_implementation=recipe.attention)


def load_student(recipe: SftRecipe | DistillRecipe, dtype: torch.dtype) -> Any:
    """The PIPO model."""
    from pipo import PipoForCausalLM

    return PipoForCausalLM.from_pretrained(resolve(recipe.model), dtype=dtype, attn_implementation=recipe.attention)


def regular_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """The uncompressed control: same data, order and masking."""
    return token_trainer(student(recipe, args), recipe, args, tokenizer, next_token_counts, unpredicted=1)


def mtp_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """The MTP head of an uncompressed base."""
    if is_fsdp_enabled():
        raise UsageError("objective", "mtp trains one layer, which FSDP does not shard", "train it without FSDP")
    model = student(recipe, args)
    model.base.to(args.device)
    return token_trainer(model, recipe, args, tokenizer, draft_counts, unpredicted=2)


def token_trainer(
    model: Any,
    recipe: SftRecipe,
    args: TrainingArguments,
    tokenizer: Any,
    count: Callable[[Tensor], Tensor],
    unpredicted: int,  # see `collator`
) -> StepTrainer:
    """For models that read a token at a position."""
    return StepTrainer(
        model=model,
        args=args,
        train_dataset=chats(recipe, recipe.data.train, tokenizer),
        eval_dataset=chats(recipe, recipe.data.eval, tokenizer) if recipe.data.eval else None,
        data_collator=collator(recipe, tokenizer.pad_token_id, unpredicted),
        count=count,
    )


def pair_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """PIPO-SFT (paper sec. 3.2)."""
    if recipe.loss.teacher is not None:
        check_same_tokens(tokenizer, load_tokenizer(resolve(recipe.loss.teacher)), "loss.teacher")
    model = student(recipe, args)
    pad = model.config.pad_token_id
    noise = (model.get_base_model() if recipe.lora else model).judges_drafts

    def pairs(files: list[str]) -> PairDataset:
        pads = recipe.pads
        return PairDataset(
            chats(recipe, files, tokenizer),
            pad,
            scheme=pads.scheme,
            max_ratio=pads.max_ratio,
            seed=args.seed,
            noise=noise,
        )

    return PairTrainer(
        model=model,
        args=args,
        train_dataset=pairs(recipe.data.train),
        eval_dataset=pairs(recipe.data.eval) if recipe.data.eval else None,
        data_collator=collator(recipe, pad, unpredicted=2),
        recipe=recipe,
        pad=pad,
    )


def collator(recipe: SftRecipe, pad: int, unpredicted: int) -> Collator | Packer:
    """How rows become a batch. `unpredicted`: tokens at an example's start that nothing predicts."""
    multiple = recipe.pad_to_multiple_of
    return Packer(pad, multiple, unpredicted) if recipe.data.packing else Collator(pad, multiple)


def chats(recipe: SftRecipe, files: list[str], tokenizer: Any) -> ChatDataset:
    """The tokenized data; what is left out is named in the log. In pairs every answer stands alone."""
    how = how_read(recipe.data)
    return note_problems(ChatDataset(files, tokenizer, shared=recipe.objective != "pipo", **how), recipe.data.strict)


def how_read(data: Files) -> dict[str, Any]:
    """What a dataset is told by a recipe, beside its files."""
    return data.model_dump(include={"max_length", "prefix", "template", "workers"})


def note_problems(data: DataT, strict: bool) -> DataT:
    """Log every line that `data` leaves out. Raises `UsageError` if there is one and `strict` does not have it."""
    for problem in data.problems:
        log.warning("left out %s", problem)
    if strict:
        refuse_problems(data.problems, "data.strict")
    return data


def save(trainer: StepTrainer, tokenizer: Any, recipe: SftRecipe | DistillRecipe, build: Callable[[], Any]) -> None:
    """The trained model, merged, with the adapter or the MTP head of an uncompressed base beside it; rank 0 writes.

    `build`: see `whole_model`.
    """
    model = whole_model(trainer, build)
    if model is None:
        return
    if recipe.lora:
        model.save_pretrained(Path(recipe.output) / "adapter")
        model = model.merge_and_unload()
    model.__dict__.pop("forward", None)
    model.to(dtype := checkpoint_dtype(recipe.model))
    facts = {"base": recipe.model, "data": recipe.data.train, "recipe": recipe.model_dump()}
    plain = model.base.to(dtype) if isinstance(model, DraftedBase) else model
    if plain.config.model_type != "pipo":  # a converted model has it already
        plain.generation_config.eos_token_id = turn_ends(tokenizer, plain.generation_config)
    save_model(plain, tokenizer, Path(recipe.output), seeds=[trainer.args.seed], **facts)
    if isinstance(model, DraftedBase):
        save_mtp(model.mtp, Path(recipe.output))
