"""`pipo inspect`: parts, parameters, memory."""

from __future__ import annotations

import json
from typing import Any

import typer

from pipo_cli.options import JsonOption, ModelArgument


def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Print a model's parts, parameters and memory per 1K tokens against its base. Reads no weights."""
    from pipo.convert.shipped import resolve
    from pipo.measure.inspect_model import inspect_model

    facts = inspect_model(resolve(model))
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    parts, memory = facts.pop("parts"), facts.pop("kv_bytes_per_1k_tokens")
    for name, value in facts.items():
        if value is not None:
            typer.echo(
                f"{name.replace('_', ' ')}: {value:,}" if name == "parameters" else f"{name.replace('_', ' ')}: {value}"
            )
    for name, count in parts.items():
        typer.echo(f"  {name.replace('_', ' ')}: {count:,}")
    typer.echo(f"KV memory per 1K tokens: {memory['base'] / 1e6:.2f} MB uncompressed")
    if memory["pipo"] is not None:
        typer.echo(f"  {memory['pipo'] / 1e6:.2f} MB as PIPO where every pair is full, {memory['ratio']:.2f} of it")
