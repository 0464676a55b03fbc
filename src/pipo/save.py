"""A saved model's folder: weights, configs, tokenizer, model card, provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipo.card import write_card
from pipo.provenance import write_provenance


def save_model(model: Any, tokenizer: Any, folder: Path, **provenance: Any) -> None:
    """Write what any tool needs to load, serve and judge the model; `provenance` says what it was made from."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_provenance(folder, **provenance)
    write_card(model, folder, provenance)
