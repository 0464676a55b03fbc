"""`pipo env`: versions and hardware, for bug reports."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from pipo_cli.options import JsonOption

PACKAGES = {"pipo": "pipo-lm"} | {
    name: name
    for name in (
        *("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "vllm", "deepspeed"),
        *("flash-attn", "flash-linear-attention", "causal-conv1d"),
    )
}


def env(as_json: JsonOption = False) -> None:
    """Print versions and hardware, for bug reports."""
    facts = collect()
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"{name}: {_text(value)}" for name, value in facts.items()))


def collect() -> dict[str, Any]:
    """Name -> version or fact. What is missing is "not installed" or None."""
    facts: dict[str, Any] = {name: _version(distribution) for name, distribution in PACKAGES.items()}
    facts |= {"python": platform.python_version(), "platform": platform.platform()}
    try:
        from pipo.runtime.provenance import hardware

        facts |= {name: fact for name, fact in hardware().items() if name != "gpu"}
    except Exception as error:  # a broken torch is what a bug report is about
        facts["hardware"] = f"{type(error).__name__}: {error}"
    return facts | {"accelerators": _accelerators(), "sandbox": _sandbox()}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _accelerators() -> list[str]:
    try:
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception:
        return []


def _sandbox() -> str | None:
    try:
        from pipo.runtime.sandbox import best

        return best().protection
    except Exception:
        return None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "unknown" if value is None else str(value)
