"""The engine's settings for a PIPO model: what is set, and what is refused by name."""

from __future__ import annotations

import functools
import logging
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import CUDAGraphMode, VllmConfig, set_current_vllm_config
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from pipo.errors import UsageError
from pipo.pairing import chosen_threshold
from pipo.vllm.supported import HYBRID_ARCHITECTURE

log = logging.getLogger("vllm.pipo")


def is_pipo(config: VllmConfig) -> bool:
    """Does this engine serve a PIPO model?"""
    model = config.model_config
    return model is not None and model.hf_config.model_type == "pipo"


def backbone_architecture(model_config: Any) -> str:
    """vLLM's name of the uncompressed model's class."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_config.hf_text_config.model_type]


class PairSettings(VerifyAndUpdateConfig):
    """vLLM calls these two while it completes its configuration, in the process that starts the engine."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """A backbone with recurrent layers makes the model a hybrid one."""
        kinds = set(getattr(model_config.hf_text_config, "layer_types", None) or ["full_attention"])
        if "sliding_attention" in kinds:
            raise UsageError(
                "MODEL", "sliding-window attention is not supported", "serve it with --engine transformers"
            )
        if "linear_attention" in kinds:
            model_config.hf_config.architectures = [HYBRID_ARCHITECTURE]
            model_config.model_arch_config = model_config.get_model_arch_config()
            info, name = model_config.registry.inspect_model_cls([HYBRID_ARCHITECTURE], model_config)
            model_config._model_info, model_config._architecture = info, name

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Choose scheduler and worker; the default threshold travels in the model's config to every process."""
        model = vllm_config.model_config
        inner = MODELS_CONFIG_MAP.get(backbone_architecture(model))
        if inner is not None:
            inner.verify_and_update_config(vllm_config)
        _refuse(vllm_config)
        # The backbone's inputs are made anew in every step and the MTP head is not captured: no graph may be replayed.
        # vLLM's defaults fill in only what is None, and what it changes later, it changes where there are graphs.
        vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE
        model.max_model_len -= model.max_model_len % 2
        vllm_config.scheduler_config.scheduler_cls = "pipo.vllm.scheduler.PairScheduler"
        vllm_config.scheduler_config.async_scheduling = False
        vllm_config.parallel_config.worker_cls = "pipo.vllm.worker.PairWorker"
        model.hf_config.confidence_threshold = default_threshold(model)


def default_threshold(model_config: Any) -> float:
    """The server's (`--override-generation-config`), else the model's, else the paper's."""
    stored = model_config.try_get_generation_config() | (model_config.override_generation_config or {})
    return chosen_threshold(None, stored.get("confidence_threshold"))


def _refuse(config: VllmConfig) -> None:
    parallel, scheduler, cache, model = (
        config.parallel_config,
        config.scheduler_config,
        config.cache_config,
        config.model_config,
    )
    unsupported = {
        "speculative_config": config.speculative_config is not None,
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "enable_dbo": parallel.enable_dbo or parallel.ubatch_size > 1,
        "cudagraph_mode": bool(config.compilation_config.cudagraph_mode),
        "worker_cls": parallel.worker_cls != "auto",
        "scheduler_cls": scheduler.scheduler_cls is not None,
        "async_scheduling": bool(scheduler.async_scheduling),
        "long_prefill_token_threshold_adaptive": scheduler.long_prefill_token_threshold_adaptive,
        "enable_lora": config.lora_config is not None,
        "kv_transfer_config": config.kv_transfer_config is not None,
        "ec_transfer_config": config.ec_transfer_config is not None,
        "kv_cache_dtype": cache.cache_dtype != "auto",
        "kv_offloading_size": getattr(cache, "kv_offloading_size", None) is not None,
        "quantization": model.quantization is not None,
        "runner": model.runner_type != "generate",
        "enable_prompt_embeds": model.enable_prompt_embeds,
        "logits_processors": bool(model.logits_processors),
    }
    for name, given in unsupported.items():
        if given:
            raise UsageError(name, "is not supported for PIPO models in vLLM", "leave it out")
    if model.hf_config.confidence_inputs != "states":
        problem = f"a model with {model.hf_config.confidence_inputs!r} is not supported in vLLM"
        raise UsageError("confidence_inputs", problem, "serve it with --engine transformers")
    if model.hf_config.draft_vocab_size is not None and config.parallel_config.tensor_parallel_size > 1:
        raise UsageError("draft_vocab_size", "a shortlist is not cut into ranks", "use --tensor-parallel-size 1")
    if model.is_moe and parallel.data_parallel_size > 1:
        problem = "replicas of a model with experts step together, and count tokens where it has pairs"
        raise UsageError("data_parallel_size", problem, "use --tensor-parallel-size, or servers of their own")
    for name, tokens in (
        ("max_num_batched_tokens", scheduler.max_num_batched_tokens),
        ("max_num_scheduled_tokens", scheduler.max_num_scheduled_tokens or 0),
        ("long_prefill_token_threshold", scheduler.long_prefill_token_threshold),
        ("block_size", cache.block_size or 0),
    ):
        if tokens % 2:
            raise UsageError(name, f"{tokens} is odd, and pairs are scheduled whole", f"use {tokens + 1}")
    _check_heads(model.hf_text_config, parallel.tensor_parallel_size)
    if cache.user_specified_block_size:
        _check_blocks(config)


def _check_heads(text_config: Any, ranks: int) -> None:
    heads, kv_heads = text_config.num_attention_heads, text_config.num_key_value_heads
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        problem = f"{ranks} ranks cannot share {heads} attention heads and {kv_heads} key-value heads"
        raise UsageError("tensor_parallel_size", problem, "use a number that divides both")


def _check_blocks(config: VllmConfig) -> None:
    """vLLM itself would only find out with the model loaded."""
    from vllm.v1.attention.selector import get_attn_backend

    from pipo.vllm.pair_kv import pair_backend

    model, tokens = config.model_config, config.cache_config.block_size
    with set_current_vllm_config(config):
        stock = get_attn_backend(model.get_head_size(), model.dtype, config.cache_config.cache_dtype)
        backend = pair_backend(stock)
        smallest = backend.get_preferred_block_size(2)
        if not backend.supports_block_size(tokens):
            problem = f"{tokens} tokens are {tokens // 2} pairs, and {stock.get_name()} has no blocks of so many"
            raise UsageError("block_size", problem, f"use {smallest} or a multiple of it, or leave it out")


def keep_first_runner() -> None:
    """PIPO models run on vLLM's first model runner; its second is not supported yet."""
    stock = VllmConfig._get_v2_model_runner_unsupported_features

    @functools.wraps(stock)
    def unsupported(self: VllmConfig) -> list[str]:
        return [*stock(self), "PIPO"] if is_pipo(self) else stock(self)

    VllmConfig._get_v2_model_runner_unsupported_features = unsupported
