"""What differs from one model family to the next. A new family is a line here and a test."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from pipo.errors import UsageError, first_line

log = logging.getLogger("pipo")

NATIVE_MTP = "mtp."
"""Prefix of a checkpoint's own MTP tensors."""

MTP_FILE = "mtp.safetensors"
"""Beside an uncompressed base: its MTP head, trained by `pipo sft` with `objective: mtp`, named as native ones are."""

HAS_MTP = {
    "llama": False,  # Llama, SmolLM2
    "qwen2": False,
    "qwen3": False,
    "qwen3_5_text": True,
}
"""Backbone model type -> does the family ship a trained MTP head?"""

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
DELTA_NET = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]

LORA_TARGETS = {
    "llama": [*ATTENTION, *MLP],
    "qwen2": [*ATTENTION, *MLP],
    "qwen3": [*ATTENTION, *MLP],
    "qwen3_5_text": [*ATTENTION, *DELTA_NET, *MLP],  # three of four layers have DeltaNet in place of attention
}
"""Backbone model type -> names of all linear layers inside its decoder layers."""

RECURRENT = ("Qwen3_5GatedDeltaNet",)
"""Classes of layers that carry a state from one position to the next."""

RECURRENT_KERNELS = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}
"""Modules that transformers takes fast kernels of these layers from -> their distributions (extra `qwen`)."""


def is_recurrent(model: Any) -> bool:
    """Whether some of its layers carry a state."""
    return any(type(module).__name__ in RECURRENT for module in model.modules())


def missing_kernels() -> list[str]:
    """Distributions without which recurrent layers run on a readable reference that is many times slower on a GPU."""
    return [name for module, name in RECURRENT_KERNELS.items() if find_spec(module) is None]


def warn_slow_layers(model: Any, device: torch.device | str) -> None:
    """Say so where they will be slow: on a GPU, without their kernels."""
    missing = missing_kernels() if torch.device(device).type == "cuda" and is_recurrent(model) else []
    if missing:
        log.warning(
            "%s not installed: the recurrent layers run on a slow reference; install the extra `qwen`",
            " and ".join(missing),
        )


def load_config(field: str, path: str) -> Any:
    """The config of a folder or hub id. Raises `UsageError` that names `field`."""
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UsageError(field, f"cannot load {path} ({first_line(error)})", "name a folder or hub id") from None


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The decoder's config, out of a multimodal wrapper where there is one. Raises `UsageError`."""
    decoder = config.get_text_config(decoder=True)
    if decoder.model_type not in HAS_MTP:
        raise UsageError("model", f"family {decoder.model_type!r} is not supported", f"use one of {', '.join(HAS_MTP)}")
    return decoder


def native_mtp(source: str | None, config: PreTrainedConfig) -> dict[str, Tensor] | None:
    """The checkpoint's trained MTP head under our names, None where the family or the checkpoint has none."""
    if not source or Path(source).is_file() or not HAS_MTP[config.model_type]:  # a file: GGUF
        return None
    tensors = checkpoint_tensors(source, NATIVE_MTP)
    return {mtp_name(name.removeprefix(NATIVE_MTP)): tensor for name, tensor in tensors} or None


def trained_mtp(source: str, config: PreTrainedConfig) -> dict[str, Tensor] | None:
    """An uncompressed base's trained MTP head under our names: of MTP_FILE beside it, else the checkpoint's own."""
    file = mtp_file(source)
    if file is None:
        return native_mtp(source, config)
    return {mtp_name(name.removeprefix(NATIVE_MTP)): tensor for name, tensor in load_file(file).items()}


def has_trained_mtp(source: str, config: PreTrainedConfig) -> bool:
    """Whether `trained_mtp` finds one; reads at most one tensor."""
    if mtp_file(source) is not None:
        return True
    if Path(source).is_file():  # GGUF
        return False
    return HAS_MTP[config.model_type] and next(checkpoint_tensors(source, NATIVE_MTP), None) is not None


def mtp_file(source: str) -> Path | None:
    """MTP_FILE of a folder or hub id, None where there is none."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    path = Path(source)
    if path.exists():
        return path / MTP_FILE if (path / MTP_FILE).is_file() else None
    try:
        return Path(_hub_file(source, MTP_FILE))
    except (EntryNotFoundError, HFValidationError, LocalEntryNotFoundError):
        return None


def mtp_name(name: str) -> str:
    """Name of an MTP tensor in published checkpoints -> name in `MtpHead`."""
    return f"decoder.{name}" if name.startswith(("layers.", "norm.")) else name


def native_name(name: str) -> str:
    """The inverse of `mtp_name`, with the checkpoints' prefix."""
    return NATIVE_MTP + name.removeprefix("decoder.")


def checkpoint_tensors(source: str, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder or hub id whose names start with `prefix`, from its safetensors files."""
    for file in _safetensors_files(source, prefix):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is no dict
                if name.startswith(prefix):
                    yield name, tensors.get_tensor(name)


def _safetensors_files(source: str, prefix: str) -> list[Path]:
    if Path(source).is_dir():
        return sorted(Path(source).glob("*.safetensors"))
    return [Path(_hub_file(source, name)) for name in _hub_shards(source, prefix)]


def _hub_shards(source: str, prefix: str) -> list[str]:
    import json

    from huggingface_hub.errors import EntryNotFoundError

    try:
        index: dict[str, Any] = json.loads(Path(_hub_file(source, "model.safetensors.index.json")).read_text())
    except EntryNotFoundError:
        return ["model.safetensors"]
    return sorted({shard for name, shard in index["weight_map"].items() if name.startswith(prefix)})


def _hub_file(source: str, name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(source, name)


def kv_bytes_per_token(backbone: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of attention keys and values a prompt token takes: uncompressed, and as PIPO with its MTP layer.

    Recurrent layers hold a state of fixed size and do not count.
    """
    types = getattr(backbone, "layer_types", None) or ["full_attention"] * backbone.num_hidden_layers
    layers = sum("attention" in kind and kind != "linear_attention" for kind in types)
    head_dim = getattr(backbone, "head_dim", None) or backbone.hidden_size // backbone.num_attention_heads
    layer = 2 * backbone.num_key_value_heads * head_dim * dtype.itemsize
    return float(layers * layer), (layers + 1) * layer / 2
