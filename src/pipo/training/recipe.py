"""Training recipes: what `pipo sft` and `pipo distill` are told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipo.data.layout import Pads
from pipo.decoding.options import Sampling
from pipo.runtime.recipe import Section, nearest

KEEPS_APART = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Attention that transformers masks between the examples of a packed row."""


class Files(Section):
    """Where conversations come from, and how they become text and tokens."""

    train: list[str] = Field(min_length=1, description="chat JSONL files")
    prefix: str = Field(
        default="",
        description="start of every answer, put into the prompt where the template does not, e.g. '<think>\\n'",
    )
    template: dict[str, Any] = Field(
        default={}, description="options of the chat template, e.g. enable_thinking: false"
    )
    strict: bool = Field(default=False, description="a line that would be left out is an error")
    workers: int | None = Field(
        default=None, ge=1, description="processes that tokenize, once; default: one for each core"
    )


class Data(Files):
    """What is trained on: every answer of every conversation, after the prompt that it has at inference."""

    eval: list[str] = Field(default=[], description="chat JSONL files for evaluation during training")
    max_length: int = Field(
        default=4096, ge=4, description="longest answer with its prompt, in tokens; longer ones are left out"
    )
    packing: bool = Field(default=False, description="a batch's examples lie end to end in one row, each on its own")


class Lora(Section):
    """Low-rank adapters on the backbone (peft); `full` modules are trained whole."""

    adapter: str | None = Field(
        default=None, description="trained adapter to go on from (a folder, or `demo`), instead of a new one of `rank`"
    )
    rank: int | None = Field(default=None, ge=1, description="of a new adapter; the paper has 64")
    alpha: float | None = Field(default=None, description="scale is alpha / rank; default 2 x rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapter's inputs, in training")
    targets: list[str] | Literal["all-linear"] | None = Field(
        default=None, description="names of the adapted layers; default: every linear layer of the family's decoder"
    )
    full: list[str] | None = Field(
        default=None, description="modules trained whole; default compressor, MTP and confidence"
    )

    @model_validator(mode="after")
    def _new_or_old(self) -> Lora:
        set_here = self.model_fields_set - {"adapter"}
        if self.adapter is None and self.rank is None:
            raise ValueError("give the rank of a new adapter, or the folder of a trained one as `adapter`")
        if self.adapter is not None and set_here:
            raise ValueError(f"{', '.join(sorted(set_here))}: fixed by the trained adapter, leave out")
        return self


class Weights(Section):
    """Weights of the terms. The backbone's has weight 1."""

    mtp_weight: float = Field(default=1.0, ge=0, description="of the MTP head's")
    confidence_weight: float = Field(default=1.0, ge=0, description="of the confidence head's")


class Loss(Weights):
    """What SFT minimises."""

    teacher: str | None = Field(default=None, description="uncompressed model for dense distillation on the SFT data")
    teacher_weight: float = Field(
        default=1.0, ge=0, description="weight of KL(teacher || student) beside the hard labels"
    )


class Recipe(Section):
    """What both stages of training have."""

    model: str = Field(description="what training starts from: folder, hub id, demo or demo-base")
    output: str = Field(description="folder of checkpoints and of the result")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="precision of frozen weights and teacher; auto: the checkpoint's with trainer.bf16, else float32",
    )
    attention: str = Field(
        default="sdpa", description="transformers' attn_implementation: sdpa, eager, flash_attention_2, ..."
    )
    pad_to_multiple_of: int = Field(
        default=2, ge=2, multiple_of=2, description="batches are padded to such a length: fewer shapes, faster kernels"
    )
    lora: Lora | None = None
    trainer: dict[str, Any] = Field(default={}, description="any field of transformers.TrainingArguments")

    @field_validator("attention")
    @classmethod
    def _supported(cls, value: str) -> str:
        if value == "flex_attention":
            raise ValueError("flex_attention is not supported by PIPO models; use sdpa or flash_attention_2")
        return value

    @field_validator("trainer")
    @classmethod
    def _known_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        from transformers import TrainingArguments

        fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
        del fields["output_dir"]
        for key in value:
            if key not in fields:
                raise ValueError(f"unknown key {key!r}{nearest(key, set(fields))}")
        return {key: _argument(key, given, fields[key].default) for key, given in value.items()}


class SftRecipe(Recipe):
    """`pipo sft`."""

    objective: Literal["pipo", "regular", "mtp"] = Field(
        default="pipo",
        description="regular: the plain base on the same data, order and masking; mtp: an MTP head for the plain base; "
        "both read the answers of a conversation in one row where its template only appends",
    )
    data: Data
    pads: Pads = Pads()
    loss: Loss = Loss()
    compile: bool = Field(
        default=False, description="compile the decoder's layers (torch.compile): a minute at the start, faster steps"
    )

    @model_validator(mode="after")
    def _of_this_objective(self) -> SftRecipe:
        if self.objective != "pipo":
            for name, default in (("pads", Pads()), ("loss", Loss())):
                if getattr(self, name) != default:
                    raise ValueError(f"{name}: of objective pipo alone, leave it out")
        if self.objective == "mtp" and self.lora is not None:
            raise ValueError("lora: objective mtp trains the head alone, the base stays as it is; leave it out")
        if self.objective == "mtp" and self.trainer.get("gradient_checkpointing"):
            raise ValueError("trainer.gradient_checkpointing: objective mtp trains one layer; leave it out")
        if self.objective == "mtp" and self.compile:
            raise ValueError("compile: objective mtp trains one layer; leave it out")
        return self

    @model_validator(mode="after")
    def _can_pack(self) -> SftRecipe:
        if self.data.packing and self.attention not in KEEPS_APART:
            raise ValueError(
                f"attention: {self.attention!r} is not known to keep packed examples apart; use one of "
                f"{', '.join(KEEPS_APART)}, or data.packing=false"
            )
        return self


class Prompts(Files):
    """What is answered: every conversation up to its last assistant turn, if it has one."""

    max_length: int = Field(default=4096, ge=1, description="longest prompt in tokens; longer ones are left out")


class Rollout(Sampling):
    """How the student answers: its own PIPO decoding, by the local decoder or in vLLM."""

    engine: Literal["local", "vllm"] = Field(default="local", description="what decodes; vllm on one rank")
    memory_share: float = Field(default=0.3, gt=0, lt=1, description="of the GPU, for vLLM's weights and cache")
    max_new_tokens: int = Field(default=512, ge=1, description="real tokens")
    threshold: float = Field(default=0.9, ge=0, allow_inf_nan=False, description="confidence threshold")
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="above 0: answers are drawn")
    tail: float | None = Field(
        default=2.0,
        ge=1,
        allow_inf_nan=False,
        description="answers that need more than this many times the steps of three quarters of their batch are cut "
        "there, so that a few long ones do not hold it up; null: none are; of the local decoder",
    )

    @model_validator(mode="after")
    def _of_this_engine(self) -> Rollout:
        given = self.model_fields_set
        if self.engine == "vllm" and "tail" in given and self.tail is not None:
            raise ValueError("tail: vLLM fills the places of answers that end early; leave it out")
        if self.engine == "local" and "memory_share" in given:
            raise ValueError("memory_share: of engine vllm; leave it out")
        return self


class Divergence(Section):
    """How student and teacher are compared (`pipo.training.divergence`)."""

    kind: Literal["topk", "full", "sampled"] = Field(
        default="topk", description="sampled: of tokens drawn from the student's whole distribution"
    )
    k: int = Field(default=32, ge=1, description="of topk")
    beta: float = Field(default=1.0, ge=0, le=1, description="1: KL(student || teacher), 0: KL(teacher || student)")

    @model_validator(mode="after")
    def _sampled_is_reverse(self) -> Divergence:
        if self.kind == "sampled" and self.beta != 1:
            raise ValueError("beta: `sampled` estimates KL(student || teacher) alone, leave it at 1")
        return self


class DistillRecipe(Recipe):
    """`pipo distill`."""

    teacher: str | None = Field(
        default=None, description="uncompressed model; default: the student's backbone with its adapter off"
    )
    data: Prompts
    rollout: Rollout = Rollout()
    divergence: Divergence = Divergence()
    loss: Weights = Weights()

    @model_validator(mode="after")
    def _has_teacher(self) -> DistillRecipe:
        if self.teacher is None and self.lora is None:
            raise ValueError("teacher: name one, or train with lora, whose base is then the teacher")
        return self

    @model_validator(mode="after")
    def _sampled_is_of_draws(self) -> DistillRecipe:
        plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
        wrong = [f"{name} {value}" for name, value in plain.items() if getattr(self.rollout, name) != value]
        if self.divergence.kind == "sampled" and wrong:
            needs = "divergence `sampled` needs tokens drawn from the student's whole distribution"
            raise ValueError(f"rollout: {needs}, set {', '.join(wrong)}")
        return self


def _argument(key: str, value: Any, default: Any) -> Any:
    """A field of TrainingArguments, of what YAML reads: it takes `1e-4` for text and the strategy `no` for false."""
    if value is False and key.endswith("_strategy"):
        return "no"
    if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{key}: {value!r} is no number") from None
    return value
