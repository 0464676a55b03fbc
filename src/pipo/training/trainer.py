"""transformers' Trainer with losses normalised over the whole optimizer step and logged one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from pipo.data.sampler import EvenSampler, Filled, LengthBlockSampler, ShuffleSampler
from pipo.model.mtp_base import draft_targets
from pipo.pairing import IGNORE, token1_targets, token2_targets
from pipo.training.divergence import soft_labels
from pipo.training.precision import frozen_dtype
from pipo.training.recipe import SftRecipe, Weights
from pipo.training.teacher import Teacher, TeacherStates


def pair_target_counts(labels: Tensor) -> Tensor:  # [B, T] -> [2]: targets of the backbone, of the MTP head
    """The denominators of the losses."""
    return torch.stack([(part != IGNORE).sum() for part in (token1_targets(labels), token2_targets(labels))])


def next_token_counts(labels: Tensor) -> Tensor:  # [B, T] -> [1]
    """The denominator of a regular language model's loss."""
    return (labels[:, 1:] != IGNORE).sum()[None]


def draft_counts(labels: Tensor) -> Tensor:  # [B, T] -> [1]
    """The denominator of the loss of an uncompressed base's drafts."""
    return (draft_targets(labels) != IGNORE).sum()[None]


LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL")
"""What messages of torch.distributed say where another rank is gone."""


class _TellEpoch(TrainerCallback):
    """Tells the data its epoch: accelerate forgets to when it skips the batches of a resumed epoch."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.data.set_epoch(int((state.epoch or 0) + 1e-6))


class StepTrainer(Trainer):
    """Each loss is a sum over its targets / their number in the optimizer step: micro-batches, accumulation, ranks.

    `count` gives a batch's numbers of targets; the model's forward takes their totals as `num_items_in_batch`. What the
    model returns in `metrics` (name -> sum, number) is logged as means.
    """

    train_dataset: Any
    eval_dataset: Any
    fillable = True  # the data's rows are ids and labels

    def __init__(self, *args: Any, count: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = count
        self.model_accepts_loss_kwargs = True
        self._metrics: dict[str, Tensor] = {}  # name -> [2]: sum, number
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(_TellEpoch(self.train_dataset))
        if self.args.world_size > 1 and self.fillable:
            self.train_dataset = Filled(self.train_dataset)
            self.eval_dataset = Filled(self.eval_dataset) if self.eval_dataset is not None else None

    def run(self, checkpoint: str | None) -> None:
        """Train, from a checkpoint on. Raises `RuntimeError` where another rank is gone."""
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except RuntimeError as error:
            if self.args.world_size == 1 or not any(words in str(error) for words in LOST):
                raise
            raise RuntimeError(
                f"rank {self.args.process_index}: another process of this job ended, see the launcher's summary; "
                "start the job again with --resume to go on from its last checkpoint"
            ) from error

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([self.count(batch["labels"]) for batch in batch_samples]).sum(0).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = self.forward(model, inputs, num_items_in_batch if model.training else None)
        loss = outputs.loss
        if model.training:
            loss = loss * self.accelerator.num_processes  # the gradients of ranks are averaged
        prefix = "" if model.training else "eval_"
        for name, pair in (outputs.metrics or {}).items():
            self._metrics[prefix + name] = self._metrics.get(prefix + name, 0) + pair.detach()
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data, strategy = self.train_dataset, self.args.train_sampling_strategy
        batch_size, seed = self.args.train_batch_size, self.args.seed
        if strategy == "group_by_length":
            return self._even(LengthBlockSampler(data.lengths, batch_size, seed), batch_size)
        if strategy == "random":
            return self._even(ShuffleSampler(len(data), seed), batch_size)
        return self._even(SequentialSampler(data), batch_size)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return self._even(SequentialSampler(eval_dataset), self.args.eval_batch_size)

    def _even(self, order: Any, batch_size: int) -> Any:
        return (
            EvenSampler(order, batch_size * self.args.world_size) if isinstance(self.train_dataset, Filled) else order
        )

    def forward(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None) -> Any:
        """The model's output with `loss`, divided by the step's number of targets."""
        return model(**inputs, num_items_in_batch=num_items_in_batch)

    def taught(self, teacher: Teacher, inputs: dict[str, Tensor]) -> TeacherStates:
        """The teacher's states, in the precision that the student computes in."""
        with self.accelerator.autocast():
            return teacher.read(inputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        for name in [name for name in self._metrics if name.startswith("eval_") == bool(prefix)]:
            pair = self.accelerator.reduce(self._metrics.pop(name), reduction="sum")
            logs[name] = float(pair[0] / pair[1]) if pair[1] else float("nan")
        if "eval_loss" in logs:
            logs["eval_loss"] = self.total(logs, prefix)
        super().log(logs, *args, **kwargs)

    def total(self, logs: dict[str, float], prefix: str) -> float:
        """The loss, of the means that are logged: over all targets, however they were batched."""
        return next(logs[prefix + name] for name in ("token_loss", "mtp_loss") if prefix + name in logs)


class PairTrainer(StepTrainer):
    """PIPO's three losses with their weights, and a teacher's distributions where the recipe names a teacher."""

    def __init__(self, *args: Any, recipe: SftRecipe, pad: int, **kwargs: Any) -> None:
        super().__init__(*args, count=pair_target_counts, **kwargs)
        self.weights = loss = recipe.loss
        self.teacher: Teacher | None = None
        if loss.teacher is not None:
            compare = partial(soft_labels, weight=loss.teacher_weight)
            dtype = frozen_dtype(recipe, self.args)
            self.teacher = Teacher.load(loss.teacher, compare, pad, self.args.device, dtype, recipe.attention)

    def forward(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None) -> Any:
        teacher = self.taught(self.teacher, inputs) if self.teacher is not None and model.training else None
        return weighted_loss(model(**inputs, num_items_in_batch=num_items_in_batch, teacher=teacher), self.weights)

    def total(self, logs: dict[str, float], prefix: str) -> float:
        backbone, mtp, confidence = (logs[f"{prefix}{name}_loss"] for name in ("backbone", "mtp", "confidence"))
        return float(weigh(backbone, mtp, confidence, self.weights))


def weighted_loss(out: Any, weights: Weights) -> Any:
    """The model's output with the recipe's sum of its three losses."""
    out.loss = weigh(out.backbone_loss, out.mtp_loss, out.confidence_loss, weights)
    return out


def weigh(backbone: Any, mtp: Any, confidence: Any, weights: Weights) -> Any:
    """The recipe's sum of three losses."""
    return backbone + weights.mtp_weight * mtp + weights.confidence_weight * confidence
