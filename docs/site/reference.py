"""Pages of the site that are made from the package: every field of a recipe, every option of a verb."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
import yaml
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from pipo.data.build.recipe import BuildRecipe
from pipo.runtime.recipe import Section
from pipo.training.recipe import DistillRecipe, SftRecipe
from pipo_cli.app import app

RECIPES = {"pipo sft": SftRecipe, "pipo distill": DistillRecipe, "pipo data build": BuildRecipe}

RECIPE_INTRO = """# Recipe fields

A recipe is a YAML file that `--config` names. An unknown key is an error that suggests the nearest one. Any field can
be given on the command line too, with a YAML value: `pipo sft --config R.yaml trainer.max_steps=10 lora.rank=8`. There
are [whole recipes](../training.md#recipes-to-start-from) to start from.
"""

COMMAND_INTRO = """# Command line

Every verb exits with 0 only on success, with 2 on wrong use, with 1 where something failed or differs. An error is one
line on stderr that names the field and the fix; `pipo --debug VERB ...` adds the traceback and the libraries' own
messages. Wherever a MODEL is wanted, `demo` is the shipped model, and wherever a BASE is, `demo-base` is its
uncompressed fine-tune.
"""


def on_files(files: Files, config: Any) -> Files:
    """mkdocs' hook: add the pages."""
    pages = {"reference/recipes.md": recipe_page(), "reference/commands.md": command_page()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def recipe_page() -> str:
    """A table for every section of every recipe."""
    parts = [RECIPE_INTRO]
    for verb, kind in RECIPES.items():
        parts.append(f"\n## {verb}\n")
        parts += section(kind, "")
    return "\n".join(parts)


def section(kind: type[Section], prefix: str) -> Iterator[str]:
    """The fields of a section, then the sections inside it, each with its full name (`data.train`)."""
    if prefix:
        yield f"\n### `{prefix.rstrip('.')}`\n\n{first_paragraph(kind)}\n"
    yield "| field | type | default | |\n|---|---|---|---|"
    inner = {name: kind_of(field.annotation) for name, field in kind.model_fields.items()}
    for name, field in kind.model_fields.items():
        yield row(f"`{prefix}{name}`", f"`{type_name(field.annotation)}`", default(field), meaning(field, inner[name]))
    for name, part in inner.items():
        if part is not None:
            yield from section(part, f"{prefix}{name}.")


def kind_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def first_paragraph(kind: type[Section]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def type_name(annotation: Any) -> str:
    """`str | null`, `shift | split | none`, `list[str]`: what a YAML value may be."""
    if annotation is type(None):
        return "null"
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (types.UnionType, Union):
        return " | ".join(map(type_name, get_args(annotation)))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, get_args(annotation)))}]"
    if isinstance(annotation, type):
        return "section" if issubclass(annotation, Section) else annotation.__name__
    return "any"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, Section) else f"`{yaml.safe_dump(value).partition(chr(10))[0]}`"


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}


def meaning(field: FieldInfo, inner: type[Section] | None) -> str:
    """Its description and its bounds."""
    text = field.description or (first_paragraph(inner) if inner else "")
    bounds = [
        f"{word} {getattr(m, name):g}" for m in field.metadata for name, word in BOUNDS.items() if hasattr(m, name)
    ]
    return f"{text}{' (' if text else ''}{', '.join(bounds)}{')' if text else ''}" if bounds else text


def row(*cells: str) -> str:
    """Of a table. A bar ends a cell, except in code."""
    return "| " + " | ".join(re.sub(r"(`[^`]*`)|\|", lambda bar: bar[1] or "\\|", cell) for cell in cells) + " |"


def command_page() -> str:
    """Usage, help and options of every verb, as `--help` has them."""
    root = typer.main.get_command(app)
    verbs = {f"pipo {name}": verb for name, verb in root.commands.items()}  # type: ignore[attr-defined]
    data = verbs["pipo data"]
    verbs["pipo data build"] = data.make_context("pipo data", ["build"], resilient_parsing=True).command
    return "\n".join([COMMAND_INTRO, *(command(name, verb) for name, verb in {"pipo": root, **verbs}.items())])


def command(name: str, verb: Any) -> str:
    context = verb.context_class(verb, info_name=name)
    records = [(param, param.get_help_record(context)) for param in verb.params]
    rows = [row(f"`{shown(param, record[0])}`", record[1]) for param, record in records if record]
    usage = re.sub("[{}]", "", f"{name} {' '.join(verb.collect_usage_pieces(context))}")
    table = "\n".join(["| argument or option | |", "|---|---|", *rows])
    return f"## {name}\n\n```text\n{usage}\n```\n\n{paragraphs(verb.help or '')}\n\n{table}\n"


def shown(param: Any, name: str) -> str:
    """An option with its type, an argument's name alone."""
    return name.split(" ")[0] if param.param_type_name == "argument" else name


def paragraphs(text: str) -> str:
    """A docstring's paragraphs, its lines joined."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
