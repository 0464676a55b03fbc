"""Supervised fine-tuning: `pipo sft`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments, set_seed

from pipo.base import load_base, load_tokenizer
from pipo.data.batch import Collator
from pipo.data.chat import ChatDataset, PairDataset, PromptDataset
from pipo.drafted import DraftedBase, grown_mtp, load_mtp, save_mtp
from pipo.errors import UsageError
from pipo.families import has_trained_mtp, text_config
from pipo.save import save_model
from pipo.shipped import adapter_of, resolve
from pipo.training.recipe import DistillRecipe, Lora, SftRecipe
from pipo.training.teacher import check_same_tokens
from pipo.training.trainer import PairTrainer, StepTrainer, draft_counts, next_token_counts

log = logging.getLogger("pipo")

DataT = TypeVar("DataT", ChatDataset, PromptDataset)

NEW_MODULES = ["compressor", "mtp", "confidence_head"]
"""Trained whole beside adapters: they are new, or small."""


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
    }
    try:
        return TrainingArguments(
            output_dir=recipe.output,
            **{
                **defaults,
                **recipe.trainer,
                "remove_unused_columns": False,
                "prediction_loss_only": True,
                "label_names": ["labels"],
            },
        )
    except (TypeError, ValueError) as error:
        raise UsageError("trainer", str(error).splitlines()[0], "see transformers.TrainingArguments") from error


def add_lora(model: PreTrainedModel, lora: Lora, full: list[str]) -> Any:
    """Adapters on the backbone, new or trained before; the modules in `full` are trained whole."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if lora.adapter is not None:
        folder = adapter_of(lora.adapter)
        if not (folder / "adapter_config.json").is_file():
            raise UsageError("lora.adapter", f"{folder} holds no adapter", "name the `adapter` folder of a run")
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    assert lora.rank is not None
    alpha: Any = lora.alpha if lora.alpha is not None else 2 * lora.rank  # peft's annotation says int
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        modules_to_save=full or None,
    )
    return get_peft_model(model, config)


def newest_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint. The trainer's state is written last: one without was torn by a kill."""
    folders = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def last_checkpoint(folder: str, resume: bool) -> str | None:
    """Where to go on. Refuses to train over another run's checkpoints."""
    found = newest_checkpoint(Path(folder))
    if found and not resume:
        raise UsageError("output", f"{folder} holds a run already", "pass --resume to go on, or choose another folder")
    return found


def sft(recipe: SftRecipe, *, resume: bool = False) -> None:
    """Train by the recipe and save the result in its output folder. Raises `UsageError`."""
    args = train_arguments(recipe)
    checkpoint = last_checkpoint(recipe.output, resume)
    set_seed(args.seed)  # of new adapters
    tokenizer = load_tokenizer(resolve(recipe.model))
    make = {"pipo": pair_trainer, "regular": regular_trainer, "mtp": mtp_trainer}[recipe.objective]
    trainer = make(recipe, args, tokenizer)
    trainer.train(resume_from_checkpoint=checkpoint)
    save(trainer, tokenizer, recipe)


def regular_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """The uncompressed control: same data, order and masking."""
    from pipo.training.regular import use_chunked_loss

    model: Any = use_chunked_loss(plain_base(recipe))
    if recipe.lora:
        model = add_lora(model, recipe.lora, recipe.lora.full or [])
    return token_trainer(model, recipe, args, tokenizer, next_token_counts)


def mtp_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """The MTP head of an uncompressed base that stays as it is: its trained one, or a new one grown from it."""
    base = plain_base(recipe).eval().requires_grad_(False).to(args.device)
    source = resolve(recipe.model)
    head = load_mtp(base, source) if has_trained_mtp(source, text_config(base.config)) else grown_mtp(base)
    return token_trainer(DraftedBase(base, head), recipe, args, tokenizer, draft_counts)


def plain_base(recipe: SftRecipe) -> Any:
    """The uncompressed model that a recipe starts from, in float32."""
    return load_base(resolve(recipe.model), dtype="float32", attn_implementation=recipe.attention)


def token_trainer(
    model: Any, recipe: SftRecipe, args: TrainingArguments, tokenizer: Any, count: Callable[[Tensor], Tensor]
) -> StepTrainer:
    """For models that read a token at a position."""
    return StepTrainer(
        model=model,
        args=args,
        train_dataset=chats(recipe, recipe.data.train, tokenizer),
        eval_dataset=chats(recipe, recipe.data.eval, tokenizer) if recipe.data.eval else None,
        data_collator=Collator(tokenizer.pad_token_id, recipe.pad_to_multiple_of),
        count=count,
    )


def load_student(recipe: SftRecipe | DistillRecipe) -> Any:
    """The PIPO model that a recipe starts from, in float32."""
    from pipo import PipoForCausalLM

    return PipoForCausalLM.from_pretrained(resolve(recipe.model), dtype="float32", attn_implementation=recipe.attention)


def pair_trainer(recipe: SftRecipe, args: TrainingArguments, tokenizer: Any) -> StepTrainer:
    """PIPO-SFT (paper sec. 3.2)."""
    if recipe.loss.teacher is not None:
        check_same_tokens(tokenizer, load_tokenizer(resolve(recipe.loss.teacher)), "loss.teacher")
    model: Any = load_student(recipe)
    pad, noise = model.config.pad_token_id, model.judges_drafts
    if recipe.lora:
        model = add_lora(model, recipe.lora, NEW_MODULES if recipe.lora.full is None else recipe.lora.full)

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
        data_collator=Collator(pad, recipe.pad_to_multiple_of),
        loss=recipe.loss,
        pad=pad,
    )


def chats(recipe: SftRecipe, files: list[str], tokenizer: Any) -> ChatDataset:
    """The tokenized data; what is left out is named in the log."""
    data = ChatDataset(files, tokenizer, max_length=recipe.data.max_length, prefix=recipe.data.prefix)
    return note_problems(data)


def note_problems(data: DataT) -> DataT:
    """Log every line that `data` leaves out."""
    for problem in data.problems:
        log.warning("left out %s", problem)
    return data


def save(trainer: StepTrainer, tokenizer: Any, recipe: SftRecipe | DistillRecipe) -> None:
    """The trained model, merged, with the adapter or the MTP head of an uncompressed base beside it."""
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.lora:
        model.save_pretrained(Path(recipe.output) / "adapter")
        model = model.merge_and_unload()
    model.__dict__.pop("forward", None)
    facts = {"base": recipe.model, "data": recipe.data.train, "recipe": recipe.model_dump()}
    plain = model.base if isinstance(model, DraftedBase) else model
    save_model(plain, tokenizer, Path(recipe.output), seeds=[trainer.args.seed], **facts)
    if isinstance(model, DraftedBase):
        save_mtp(model.mtp, Path(recipe.output))
