"""Uncompressed models: loading one from a folder, a hub id or a GGUF file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedModel

from pipo.convert.gguf_rope import restore_scaling
from pipo.errors import UsageError, first_line
from pipo.model.loading import check_loading
from pipo.model.pipo import PipoForCausalLM

log = logging.getLogger("pipo")

DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0}
"""Options that mean something only where tokens are drawn, with the values that switch them off."""


def load_base(
    source: str, *, dtype: str | torch.dtype = "auto", attn_implementation: str | None = None
) -> PreTrainedModel:
    """A Hugging Face causal LM, all of whose tensors are there. A GGUF file is dequantized. Raises `UsageError`."""
    path, kwargs = _resolve(source)
    try:
        if kwargs:
            kwargs["config"] = AutoConfig.from_pretrained(path, **kwargs)
            restore_scaling(kwargs["config"], source)
            kwargs["quantization_config"] = GgufConfig(dequantize=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            **kwargs,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            "model", f"cannot load {source} ({first_line(error)})", "name a folder, hub id or GGUF file"
        ) from error
    check_loading(source, info)
    if kwargs:
        _forget_gguf(model)
    mend_generation_config(source, model.generation_config)
    return model


def mend_generation_config(source: str, config: GenerationConfig) -> None:
    """Make it one that transformers saves: options of drawing mean that tokens are drawn. Raises `UsageError`."""
    options = {name: value for name, value in DRAWN.items() if getattr(config, name, None) not in (None, value)}
    if options and not config.do_sample:
        config.do_sample = True
    try:
        config.validate(strict=True)
    except ValueError as error:
        problem = f"its generation_config.json cannot be saved ({first_line(error)})"
        raise UsageError(source, problem, "correct that file") from error


def load_model(source: str, *, dtype: str | torch.dtype = "auto") -> Any:
    """A PIPO model or an uncompressed one, whichever the folder holds. Raises `UsageError`."""
    if not source.endswith(".gguf") and _model_type(source) == "pipo":
        try:
            model = PipoForCausalLM.from_pretrained(source, dtype=dtype)
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(
                "model", f"cannot load {source} ({first_line(error)})", "save or download it again"
            ) from error
        mend_generation_config(source, model.generation_config)
        return model
    return load_base(source, dtype=dtype)


def _model_type(source: str) -> str | None:
    path, _ = _resolve(source)
    try:
        return AutoConfig.from_pretrained(path).model_type
    except (OSError, ValueError) as error:
        raise UsageError("model", f"cannot load {source} ({first_line(error)})", "name a folder or hub id") from error


def cpu_lacks_bfloat16() -> bool:
    """Whether this CPU has no instructions for bfloat16, as far as is known."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_slow_bfloat16(option: str) -> None:
    """Say that on this CPU float32 is faster than the bfloat16 that `option` asks for, if it is."""
    if cpu_lacks_bfloat16():
        log.warning("%s: this CPU has no instructions for bfloat16, float32 is several times faster", option)


def load_tokenizer(source: str) -> Any:
    """The tokenizer beside a model. Raises `UsageError`."""
    path, kwargs = _resolve(source)
    try:
        return AutoTokenizer.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        raise UsageError(
            "tokenizer", f"cannot load it from {source} ({first_line(error)})", "put its files beside the model"
        ) from error


def stored_threshold(source: str) -> float | None:
    """The confidence threshold that a folder or hub id stores, None where it stores none."""
    try:
        value: float | None = getattr(GenerationConfig.from_pretrained(source), "confidence_threshold", None)
    except OSError:
        return None
    return value


def _resolve(source: str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if path.exists() and not (path / "config.json").is_file():
        raise UsageError("model", f"{source} is no model folder (no config.json)", "name a Hugging Face model folder")
    return source, {}


def _forget_gguf(model: PreTrainedModel) -> None:
    """Make a dequantized model an ordinary one, that can be cast, trained and saved."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.is_quantized = False
    model.hf_quantizer = None
    model.quantization_method = None
