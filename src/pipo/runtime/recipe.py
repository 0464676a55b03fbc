"""Recipes: YAML files, checked strictly, with `section.key=value` overrides."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipo.errors import UsageError

RecipeT = TypeVar("RecipeT", bound="Section")


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


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


def options(overrides: list[str]) -> dict[str, Any]:
    """`key=value` with YAML values -> what they say. Raises `UsageError`."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _apply(raw, override)
    return raw


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


def nearest(key: str, names: Any) -> str:
    """The end of a message about an unknown key: which of `names` may be meant."""
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
    if not location:  # of the whole recipe: the message names the field
        field, _, problem = problem.partition(": ")
    return UsageError(field, problem[0].lower() + problem[1:], "correct the recipe or the override")
