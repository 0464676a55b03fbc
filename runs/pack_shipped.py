"""Put a trained adapter or MTP head among the assets that `demo` and `demo-base` are built from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipo.convert.folders import convert
from pipo.convert.shipped import ASSETS, SCALE, demo_facts
from pipo.model.families import MTP_FILE


def write_start(folder: str, base: str = "demo-base", confidence_inputs: str = "states") -> None:
    """The model that the adapter of `demo` was trained on, to go on from; or the like around another base."""

    residual = demo_facts()["compressor_residual"]
    convert(base, folder, residual=residual, confidence_inputs=confidence_inputs)


def pack(adapter: Path, name: str, threshold: float | None = None) -> None:
    """Put a trained adapter among the assets; `threshold` is what `demo` stores."""
    target = ASSETS / name
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    _pack_tensors(adapter / "adapter_model.safetensors", target / "adapter_model.safetensors")
    if threshold is not None:
        run = json.loads((adapter.parent / "config.json").read_text())
        facts = {"confidence_threshold": threshold, "compressor_residual": run["compressor_residual"]}
        (target / "facts.json").write_text(json.dumps(facts) + "\n")


def pack_mtp(file: Path) -> None:
    """Put a trained MTP head of `demo-base` (MTP_FILE of a run with `objective: mtp`) among the assets."""
    _pack_tensors(file, ASSETS / "demo-base" / MTP_FILE)


def _pack_tensors(file: Path, target: Path) -> None:
    """Vectors are kept in bfloat16, matrices in int8 with a float32 scale a row."""
    packed: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(file).items():
        if tensor.ndim < 2:
            packed[key] = tensor.to(torch.bfloat16)
            continue
        scale = (tensor.float().abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        packed[key] = (tensor / scale).round().to(torch.int8)
        packed[key + SCALE] = scale
    save_file(packed, target)


def main(argv: list[str]) -> None:
    """`python runs/pack_shipped.py ADAPTER_FOLDER demo-base`, `... demo THRESHOLD`, or `... MTP_FILE demo-base-mtp`;
    `... FOLDER demo-start [BASE]` writes what the adapter of `demo` was trained on, or the like around another base.
    """
    if len(argv) == 2 and argv[1] == "demo-base":
        pack(Path(argv[0]), argv[1])
    elif len(argv) == 2 and argv[1] == "demo-base-mtp":
        pack_mtp(Path(argv[0]))
    elif len(argv) in (2, 3) and argv[1] == "demo-start":
        write_start(argv[0], *argv[2:])
    elif len(argv) == 3 and argv[1] == "demo":
        pack(Path(argv[0]), argv[1], float(argv[2]))
    else:
        sys.exit(f"usage: {main.__doc__}")


if __name__ == "__main__":
    main(sys.argv[1:])
