"""A saved model's folder: weights, configs, tokenizer, model card, provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipo.convert.card import write_card
from pipo.errors import UsageError
from pipo.runtime.provenance import write_provenance


def check_new(folder: str | Path, field: str) -> None:
    """Raises `UsageError`, naming `field`, where something is in the folder already."""
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise UsageError(field, f"{folder} is not empty", "choose a new folder")


def save_model(model: Any, tokenizer: Any, folder: Path, **provenance: Any) -> None:
    """Write what any tool needs to load, serve and judge the model; `provenance` says what it was made from."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_provenance(folder, **provenance)
    write_card(model, folder, provenance)
