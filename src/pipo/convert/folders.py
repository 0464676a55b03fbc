"""Folders in, folders out: what `pipo convert`, `pipo import` and `pipo export` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipo.convert.base import load_model, load_tokenizer
from pipo.convert.from_base import from_base
from pipo.convert.published import export_published, load_published
from pipo.convert.save import check_new, save_model
from pipo.convert.shipped import resolve
from pipo.errors import UsageError
from pipo.model.pipo import PipoForCausalLM


def convert(base: str, out: str | Path, **options: Any) -> PipoForCausalLM:
    """`pipo convert`: write a PIPO folder; `options` as `from_base` takes them. Raises `UsageError`."""
    check_new(out, "OUT")
    source = resolve(base)
    tokenizer = load_tokenizer(source)
    model = from_base(source, tokenizer=tokenizer, **options)
    model.config.base_model = base
    save_model(model, tokenizer, Path(out), base=base)
    return model


def import_published(src: Path, out: Path, base: Path | None) -> None:
    """`pipo import`: the authors' layout -> a PIPO folder."""
    model = load_published(src, base)
    holder = next((folder for folder in (src, base) if folder and (folder / "tokenizer_config.json").is_file()), None)
    if holder is None:
        raise UsageError("SRC", f"no tokenizer in {src}" + (f" or {base}" if base else ""), "put its files there")
    tokenizer = load_tokenizer(str(holder))
    tokenizer.pad_token_id = model.config.pad_token_id
    model.config.base_model = str(base) if base else None
    save_model(model, tokenizer, out, base=str(src))


def export(model: str, out: Path) -> None:
    """`pipo export --layout authors`: a PIPO folder -> the authors' merged layout."""
    source = resolve(model)
    loaded = load_model(source)
    if not isinstance(loaded, PipoForCausalLM):
        raise UsageError("MODEL", f"{model} is no PIPO model", "convert it first")
    export_published(loaded, out)
    load_tokenizer(source).save_pretrained(out)
