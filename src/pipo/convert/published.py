"""The authors' published layout, in and out (merged folders and LoRA adapter folders)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from pipo.convert.pad_token import without
from pipo.errors import UsageError
from pipo.model.config import PipoConfig
from pipo.model.families import mtp_name
from pipo.model.pipo import PipoForCausalLM

ADAPTER_PREFIX = "base_model.model."


def our_name(name: str) -> str:
    """Published tensor name -> name in `PipoForCausalLM`."""
    for prefix in ("model.language_model.", "model."):
        if name.startswith(prefix):
            return "backbone." + name.removeprefix(prefix)
    return "mtp." + mtp_name(name.removeprefix("mtp.")) if name.startswith("mtp.") else name


def published_name(name: str) -> str:
    """The inverse of `our_name`, in the merged layout."""
    if name.startswith("backbone."):
        return "model.language_model." + name.removeprefix("backbone.")
    return name.replace("mtp.decoder.", "mtp.")


def load_published(path: Path, base: Path | None) -> PipoForCausalLM:
    """Every tensor must be there and known; nothing is initialised. Raises `UsageError`."""
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        if base is None:
            raise UsageError("--base", f"{path} is an adapter", "name the merged folder that it was trained on")
        config, tensors = read_config(base), _read(base)
        _merge(tensors, path)
        config["compressor_type"] = _compressor_type(path / "additional_config.json", config)
    else:
        config, tensors = read_config(path), _read(path)
    return _assemble(path, config, {our_name(name): tensor for name, tensor in tensors.items()})


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises `UsageError`."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError("SRC", f"{folder} has no readable config.json", "name a model folder") from error
    return config


def _read(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UsageError("SRC", f"{folder} has no model*.safetensors", "name a model folder")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _compressor_type(file: Path, config: dict[str, Any]) -> Any:
    return json.loads(file.read_text())["compressor_type"] if file.is_file() else config.get("compressor_type")


def _merge(tensors: dict[str, Tensor], adapter: Path) -> None:
    """Add LoRA products and put full copies in place, under the base's own names."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    given = {
        name.removeprefix(ADAPTER_PREFIX): t for name, t in load_file(adapter / "adapter_model.safetensors").items()
    }
    known = {our_name(name): name for name in tensors}
    for name, tensor in given.items():
        if name.endswith(".lora_B.weight"):
            continue
        target = name.replace(".lora_A.weight", ".weight")
        key = known.get(our_name(target))
        if key is None and target == name:
            key = known[our_name(target)] = target  # a head that the base does not have yet
        elif key is None:
            raise UsageError("SRC", f"the base has no {target}", "name the folder that the adapter was trained on")
        elif target != name:
            b = given[name.replace(".lora_A.", ".lora_B.")]
            tensor = tensors[key] + (scale * (b.float() @ tensor.float())).to(tensors[key].dtype)
        tensors[key] = tensor


def _assemble(source: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> PipoForCausalLM:
    kind = config.pop("compressor_type", None) or ("mlp" if "compressor.mlp.0.weight" in tensors else "linear")
    config.pop("mtp_num_hidden_layers", None)
    backbone = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    pad = backbone.pad_token_id
    backbone.eos_token_id = without(backbone.eos_token_id, pad)
    model = PipoForCausalLM(PipoConfig(backbone_config=backbone, compressor=kind, pad_token_id=pad))
    if backbone.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors.get("backbone.embed_tokens.weight", torch.empty(0)))
    expected = model.state_dict()
    _refuse(source, "missing", expected.keys() - tensors.keys())
    _refuse(source, "unknown", tensors.keys() - expected.keys())
    _refuse(source, "misshapen", [name for name in expected if expected[name].shape != tensors[name].shape])
    dtype = tensors["backbone.norm.weight"].dtype
    model.to(dtype).load_state_dict(tensors)
    model.config.dtype = dtype
    model.generation_config.pad_token_id = pad
    model.generation_config.eos_token_id = backbone.eos_token_id
    return model.eval()


def _refuse(source: Path, what: str, names: Iterable[str]) -> None:
    if listed := sorted(published_name(name) for name in names):
        raise UsageError(str(source), f"{what} tensors {', '.join(listed[:8])}", "use a complete PIPO checkpoint")


def export_published(model: PipoForCausalLM, folder: Path) -> None:
    """Write the authors' merged layout. Raises `UsageError` where it cannot hold the model."""
    if model.config.compressor_residual:
        raise UsageError("MODEL", "its compressor has a residual", "the authors' layout holds compressors without one")
    if model.judges_drafts:
        problem = "its confidence head sees the drafted token (confidence_inputs: draft)"
        raise UsageError("MODEL", problem, "the authors' layout holds heads that see the states alone")
    if model.config.draft_vocab_size is not None:
        problem = f"its drafts have a shortlist (draft_vocab_size {model.config.draft_vocab_size})"
        raise UsageError("MODEL", problem, "the authors' layout holds none; export the model that it was added to")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(
        {published_name(name): tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = model.config.get_text_config().to_dict() | {
        "architectures": ["Qwen3_5ForCausalPIPO"],
        "compressor_type": model.config.compressor,
        "mtp_num_hidden_layers": 1,
        "pad_token_id": model.config.pad_token_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
