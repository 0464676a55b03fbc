"""Training recipes: YAML files, checked strictly, with `section.key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipo.errors import UsageError

RecipeT = TypeVar("RecipeT", bound="Section")


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Data(Section):
    """What is trained on."""

    train: list[str] = Field(min_length=1, description="chat JSONL files")
    eval: list[str] = Field(default=[], description="chat JSONL files for evaluation during training")
    max_length: int = Field(default=4096, ge=4, description="longest conversation in tokens; longer ones are skipped")
    prefix: str = Field(
        default="", description="start of every answer that the prompt already holds, e.g. '<think>\\n'"
    )


class Pads(Section):
    """How rejected drafts are imitated in training."""

    scheme: Literal["shift", "split", "none"] = "shift"
    max_ratio: float = Field(default=0.7, ge=0, le=1, description="each sequence draws its ratio from U[0, max_ratio]")


class Lora(Section):
    """Low-rank adapters on the backbone (peft); `full` modules are trained whole."""

    rank: int = Field(ge=1)
    alpha: float | None = Field(default=None, description="scale is alpha / rank; default 2 x rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    full: list[str] | None = Field(
        default=None, description="modules trained whole; default compressor, MTP and confidence"
    )


class Loss(Section):
    """Weights of the terms. The backbone's cross-entropy has weight 1."""

    mtp_weight: float = Field(default=1.0, ge=0)
    confidence_weight: float = Field(default=1.0, ge=0)
    teacher: str | None = Field(default=None, description="uncompressed model for dense distillation on the SFT data")
    teacher_weight: float = Field(
        default=1.0, ge=0, description="weight of KL(teacher || student) beside the hard labels"
    )


class SftRecipe(Section):
    """`pipo sft`."""

    model: str
    output: str
    objective: Literal["pipo", "regular"] = "pipo"
    data: Data
    pads: Pads = Pads()
    lora: Lora | None = None
    loss: Loss = Loss()
    trainer: dict[str, Any] = Field(default={}, description="any field of transformers.TrainingArguments")

    @field_validator("trainer")
    @classmethod
    def _known_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        from transformers import TrainingArguments

        names = {field.name for field in dataclasses.fields(TrainingArguments)} - {"output_dir"}
        for key in value:
            if key not in names:
                raise ValueError(f"unknown key {key!r}{_nearest(key, names)}")
        return value


def load_recipe(kind: type[RecipeT], path: str, overrides: list[str]) -> RecipeT:
    """Read a recipe. `overrides` are "section.key=value" with YAML values. Raises `UsageError`."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise UsageError("--config", f"no file {path}", "name a recipe, see runs/") from error
    except yaml.YAMLError as error:
        raise UsageError(
            "--config", f"{path} is no YAML ({str(error).splitlines()[0]})", "see runs/ for examples"
        ) from error
    if not isinstance(raw, dict):
        raise UsageError("--config", f"{path} holds no mapping", "see runs/ for examples")
    for override in overrides:
        _apply(raw, override)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise _usage_error(kind, error) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sep, value = override.partition("=")
    if not sep:
        raise UsageError(override, "is no override", "write section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise UsageError(key, f"{section!r} is no section", "write section.key=value")
    raw[last] = yaml.safe_load(value)


def _nearest(key: str, names: Any) -> str:
    close = difflib.get_close_matches(key, list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _fields(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """Names of the keys that would be valid beside the one at `location`."""
    for part in location[:-1]:
        field = kind.model_fields.get(part) if hasattr(kind, "model_fields") else None
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        kind = next((c for c in candidates if hasattr(c, "model_fields")), None)
    return list(kind.model_fields) if kind is not None else []


def _usage_error(kind: type[Section], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    location = tuple(part for part in first["loc"])
    field = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _fields(kind, location), n=1, cutoff=0.5)
        return UsageError(field, "unknown key", f"did you mean {close[0]!r}?" if close else "remove it")
    problem = first["msg"].removeprefix("Value error, ")
    return UsageError(field, problem[0].lower() + problem[1:], "correct the recipe or the override")
