"""On-policy distillation from the uncompressed teacher: `pipo distill` (paper sec. 3.2, appendix C)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import GenerationConfig

from pipo.convert.base import load_tokenizer
from pipo.convert.pad_token import id_list, turn_ends
from pipo.convert.shipped import resolve
from pipo.data.batch import Collator
from pipo.data.datasets import PromptDataset
from pipo.decoding.engine import Completion
from pipo.errors import UsageError
from pipo.model.families import load_config
from pipo.pairing import token2_targets
from pipo.tasks.repetition import repeats
from pipo.training import divergence
from pipo.training.checkpoint import last_checkpoint
from pipo.training.distill.rollout import lay_out_answer, roll_out
from pipo.training.precision import frozen_dtype
from pipo.training.recipe import DistillRecipe, Divergence, Weights
from pipo.training.sft import how_read, note_problems, save, student, train_arguments
from pipo.training.teacher import Teacher, check_same_tokens
from pipo.training.trainer import StepTrainer, pair_target_counts, weighted_loss

if TYPE_CHECKING:
    from pipo.training.distill.served import ServedStudent


def distill(recipe: DistillRecipe, *, resume: bool = False) -> None:
    """Train by the recipe and save the result in its output folder. Raises `UsageError`."""
    args = train_arguments(recipe)
    checkpoint = last_checkpoint(recipe.output, resume, args.world_size)
    if recipe.rollout.engine == "vllm" and args.world_size > 1:
        raise UsageError("rollout.engine", f"vllm with {args.world_size} ranks is not supported", "use one, or local")
    tokenizer, prompts = prepare(recipe)
    build = partial(student, recipe, args)
    trainer = DistillTrainer(args=args, recipe=recipe, tokenizer=tokenizer, train_dataset=prompts, build=build)
    try:
        trainer.run(checkpoint)
    finally:
        if trainer.served is not None:
            trainer.served.close()
    save(trainer, tokenizer, recipe, build)


def prepare(recipe: DistillRecipe) -> tuple[Any, PromptDataset]:
    """Tokenizer and prompts, once it is sure that rollout, student and teacher agree. Raises `UsageError`."""
    student = resolve(recipe.model)
    tokenizer = load_tokenizer(student)
    check_same_end(tokenizer, student)
    if recipe.divergence.kind == "sampled":
        check_drafts_any_token(student)
    if recipe.teacher is not None:
        check_same_tokens(tokenizer, load_tokenizer(resolve(recipe.teacher)))
    elif was_trained(Path(student)):
        problem = f"{recipe.model} was trained already: with a new adapter off it is no uncompressed model"
        raise UsageError("teacher", problem, "name one, or start from what it was trained from, with lora.adapter")
    data = PromptDataset(recipe.data.train, tokenizer, **how_read(recipe.data))
    return tokenizer, note_problems(data, recipe.data.strict)


def check_same_end(tokenizer: Any, student: str) -> None:
    """Decoding must stop where a turn ends in the chat template's text."""
    try:
        config = GenerationConfig.from_pretrained(student)
    except OSError:
        return  # the tokenizer's alone
    ends, end = id_list(config.eos_token_id), turn_ends(tokenizer, config)[0]
    if ends and end not in ends:
        problem = f"its decoding stops at {ends}, its chat template ends a turn with {end}"
        raise UsageError("model", problem, "put that into eos_token_id of its generation_config.json")


def check_drafts_any_token(student: str) -> None:
    """Drafts that a shortlist allows are no draws of the student's whole distribution."""
    if getattr(load_config("model", student), "draft_vocab_size", None) is not None:
        problem = "`sampled` needs drafts from the whole vocabulary, and the student has a shortlist"
        raise UsageError("divergence.kind", problem, "take topk or full, or give the student's shortlist up")


def was_trained(student: Path) -> bool:
    """Whether a folder says what data it was trained on: then it holds a merged model."""
    file = student / "provenance.json"
    return file.is_file() and "data" in json.loads(file.read_text(encoding="utf-8"))


def compare_by(section: Divergence) -> divergence.Compare:
    """The recipe's comparison."""
    if section.kind == "topk":
        return partial(divergence.topk, k=section.k, beta=section.beta)
    if section.kind == "full":
        return partial(divergence.full, beta=section.beta)
    return divergence.sampled


class DistillTrainer(StepTrainer):
    """Answers a step's prompts with the student as it is now, and trains it on where the teacher differs.

    Its batches of prompts become batches of answers before the targets are counted; what follows is `StepTrainer`.
    A sharded student cannot decode, as ranks write answers of different lengths: every rank then keeps a whole copy
    (`reader`), which takes over the weights at every step. `build` makes the student as training starts from it.
    """

    fillable = False

    def __init__(
        self, *args: Any, recipe: DistillRecipe, tokenizer: Any, build: Callable[[], Any], **kwargs: Any
    ) -> None:
        collate = Collator(tokenizer.pad_token_id, recipe.pad_to_multiple_of)
        model = build()
        super().__init__(
            *args, model=model, count=pair_target_counts, data_collator=lambda rows: {"prompts": rows}, **kwargs
        )
        self.recipe, self.tokenizer, self.collate = recipe, tokenizer, collate
        self.reader = build().to(self.args.device) if self.is_fsdp_enabled else model
        self.weights: Weights = recipe.loss
        self.served: ServedStudent | None = None
        compare, pad = compare_by(recipe.divergence), tokenizer.pad_token_id
        self.teacher = (
            Teacher.with_adapter_off(self.reader, compare, pad)
            if recipe.teacher is None
            else Teacher.load(
                recipe.teacher, compare, pad, self.args.device, frozen_dtype(recipe, self.args), recipe.attention
            )
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The step's answers in micro-batches, and their numbers of targets."""
        given, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.refresh_reader()
        batches = [self.answer([row["prompt"] for row in batch["prompts"]], i) for i, batch in enumerate(given)]
        return batches, super()._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> None:
        """Nothing to count before the prompts are answered."""

    def refresh_reader(self) -> None:
        """The student's weights of this step, for what decodes. All ranks take part."""
        if self.is_fsdp_enabled:
            whole = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
            self.reader.load_state_dict(whole)
        if self.recipe.rollout.engine == "vllm":
            self.served = self.served or self.serve()
            self.served.take_over(self.reader)

    def serve(self) -> ServedStudent:
        """vLLM on the folder that training starts from."""
        from pipo.training.distill.served import ServedStudent

        return ServedStudent(
            resolve(self.recipe.model),
            self.recipe.rollout,
            dtype="bfloat16" if self.args.bf16 else "float32",
            answers=self.args.per_device_train_batch_size,
        )

    def answer(self, prompts: list[list[int]], part: int) -> dict[str, Tensor]:
        """Prompts -> a batch of the student's answers. `part` numbers the step's batches on this rank.

        Draws belong to a prompt's number within the step, so that they do not depend on how many ranks share it.
        """
        first = (part * self.args.world_size + self.args.process_index) * self.args.per_device_train_batch_size
        seed = f"{self.args.seed}/{self.state.global_step}"
        if self.served is not None:
            answers = self.served.roll_out(prompts, seed, first)
        else:
            student = self.reader.get_base_model() if self.recipe.lora else self.reader
            with self.accelerator.autocast():  # in the precision that is trained and served
                answers = roll_out(student, self.tokenizer, prompts, self.recipe.rollout, seed, first)
        self.note(answers)
        layouts = [lay_out_answer(answer, self.tokenizer.pad_token_id) for answer in answers]
        batch = self.collate([{"input_ids": layout.ids, "labels": layout.labels} for layout in layouts])
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}

    def note(self, answers: list[Completion]) -> None:
        """What is logged of the answers, beside the losses."""
        drafts = [slot for answer in answers for slot in answer.slots if slot.draft is not None]
        tokens = sum(len(answer.token_ids) for answer in answers)
        steps = sum(answer.steps for answer in answers)
        ended = sum(answer.finish_reason == "stop" for answer in answers)
        loops = sum(repeats(answer.text) for answer in answers)
        shares = {
            "rollout_tokens": (tokens, len(answers)),
            "rollout_ended": (ended, len(answers)),
            "rollout_repetition": (loops, len(answers)),
            "rollout_tokens_per_step": (tokens, steps),
            "rollout_acceptance_rate": (sum(slot.accepted for slot in drafts), len(drafts)),
        }
        for name, (total, number) in shares.items():
            pair = torch.tensor([total, number], dtype=torch.float32, device=self.args.device)
            self._metrics[name] = self._metrics.get(name, 0) + pair

    def forward(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None) -> Any:
        teacher, drafts = self.taught(self.teacher, inputs), token2_targets(inputs["labels"])
        out = model(**inputs, num_items_in_batch=num_items_in_batch, teacher=teacher, drafts=drafts)
        return weighted_loss(out, self.weights)
