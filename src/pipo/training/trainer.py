"""transformers' Trainer with losses normalised over the whole optimizer step and logged one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from pipo.data.sampler import LengthBlockSampler
from pipo.drafted import draft_targets
from pipo.pairing import IGNORE, token1_targets, token2_targets
from pipo.training.divergence import labelled
from pipo.training.recipe import Loss, Weights
from pipo.training.teacher import Teacher


def pair_target_counts(labels: Tensor) -> Tensor:  # [B, T] -> [2]: targets of the backbone, of the MTP head
    """The denominators of the losses."""
    return torch.stack([(part != IGNORE).sum() for part in (token1_targets(labels), token2_targets(labels))])


def next_token_counts(labels: Tensor) -> Tensor:  # [B, T] -> [1]
    """The denominator of a regular language model's loss."""
    return (labels[:, 1:] != IGNORE).sum()[None]


def draft_counts(labels: Tensor) -> Tensor:  # [B, T] -> [1]
    """The denominator of the loss of an uncompressed base's drafts."""
    return (draft_targets(labels) != IGNORE).sum()[None]


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

    def __init__(self, *args: Any, count: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = count
        self.model_accepts_loss_kwargs = True
        self._metrics: dict[str, Tensor] = {}  # name -> [2]: sum, number
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(_TellEpoch(self.train_dataset))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        counts = torch.stack([self.count(batch["labels"]) for batch in batch_samples]).sum(0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = self.forward(model, inputs, num_items_in_batch)
        loss = outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None and model.training:
            loss = loss * self.accelerator.num_processes  # the gradients of ranks are averaged
        prefix = "" if model.training else "eval_"
        for name, pair in (outputs.metrics or {}).items():
            self._metrics[prefix + name] = self._metrics.get(prefix + name, 0) + pair.detach()
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return LengthBlockSampler(self.train_dataset.lengths, self.args.train_batch_size, self.args.seed)

    def forward(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None) -> Any:
        """The model's output with `loss`, divided by the step's number of targets."""
        return model(**inputs, num_items_in_batch=num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        for name in [name for name in self._metrics if name.startswith("eval_") == bool(prefix)]:
            pair = self.accelerator.reduce(self._metrics.pop(name), reduction="sum")
            logs[name] = float(pair[0] / pair[1]) if pair[1] else float("nan")
        super().log(logs, *args, **kwargs)


class PairTrainer(StepTrainer):
    """PIPO's three losses with their weights, and a teacher's distributions where the recipe names a teacher."""

    def __init__(self, *args: Any, loss: Loss, pad: int, **kwargs: Any) -> None:
        super().__init__(*args, count=pair_target_counts, **kwargs)
        self.weights = loss
        compare = partial(labelled, weight=loss.teacher_weight)
        self.teacher = Teacher.load(loss.teacher, compare, pad, self.args.device) if loss.teacher else None

    def forward(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | None) -> Any:
        teacher = self.teacher.states(inputs) if self.teacher is not None and model.training else None
        return weighted_loss(model(**inputs, num_items_in_batch=num_items_in_batch, teacher=teacher), self.weights)


def weighted_loss(out: Any, weights: Weights) -> Any:
    """The model's output with the recipe's sum of its three losses."""
    weighted = weights.mtp_weight * out.mtp_loss + weights.confidence_weight * out.confidence_loss
    out.loss = out.backbone_loss + weighted
    return out
