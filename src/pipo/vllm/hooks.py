"""The parts of vLLM that are no promise of its, and that this plugin holds on to: all of them, in one table.

A new vLLM may move any of them. `moved` says so, and a test for each entry runs it, so that an update of vLLM fails by
name. Public ways in (entry point, `ModelRegistry`, `scheduler_cls`, `worker_cls`) are not listed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Hook:
    """`where` is module:name, with dots below a class. `parameters` and `mentions` must be found there."""

    where: str
    why: str
    parameters: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()  # names that its source uses


RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
KV_SPEC = "vllm.v1.kv_cache_interface:FullAttentionSpec"

HOOKS = (
    # plugin and settings
    Hook("vllm.model_executor.models.config:MODELS_CONFIG_MAP", "settings of an architecture before the engine starts"),
    Hook(
        "vllm.config.model:ModelConfig.__post_init__",
        "a hybrid backbone changes the model's architecture",
        mentions=("_try_verify_and_update_model_config", "_model_info", "_architecture"),
    ),
    Hook(
        "vllm.config.model:ModelConfig.architectures",
        "which class is loaded",
        mentions=("model_arch_config.architectures",),
    ),
    Hook(
        "vllm.config.vllm:VllmConfig.use_v2_model_runner",
        "the first model runner is kept",
        mentions=("_get_v2_model_runner_unsupported_features",),
    ),
    Hook("vllm.config.vllm:VllmConfig._get_v2_model_runner_unsupported_features", "the same", parameters=("self",)),
    Hook(
        "vllm.config.vllm:VllmConfig._set_config_default",
        "vLLM's default does not turn graphs on again",
        mentions=("getattr(config_obj, key) is None",),
    ),
    Hook(
        "vllm.config.compilation:CompilationConfig.resolve_cudagraph_mode_and_sizes",
        "nor do attention backends",
        mentions=("cudagraph_mode == CUDAGraphMode.NONE",),
    ),
    Hook(
        "vllm.v1.attention.selector:get_attn_backend",
        "block sizes are refused before the engine starts",
        ("head_size", "dtype", "kv_cache_dtype"),
    ),
    Hook(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "a request's own check in the front end",
        parameters=("self", "request_id", "prompt", "params"),
    ),
    Hook(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.__init__",
        "Prometheus counters of drafts",
        mentions=("self.vllm_config = vllm_config", "self._spec_decoding_cls("),
    ),
    Hook(
        "vllm.v1.spec_decode.metrics:SpecDecodingProm.__init__",
        "the same",
        parameters=("self", "speculative_config", "labelnames", "per_engine_labelvalues"),
        mentions=("spec_decoding_enabled", "num_speculative_tokens"),
    ),
    # caches in pairs
    Hook(f"{KV_SPEC}.__init__", "several tokens an entry", parameters=("tokens_per_state", "block_size")),
    Hook(
        "vllm.model_executor.layers.attention:Attention.get_kv_cache_spec",
        "a layer's cache",
        parameters=("self", "vllm_config"),
    ),
    Hook(
        "vllm.model_executor.layers.attention:Attention.forward",
        "entries are written by the kernel, not before it",
        mentions=("forward_includes_kv_cache_update",),
    ),
    Hook("vllm.model_executor.layers.mamba.abstract:MambaBase.get_attn_backend", "recurrent layers in pairs"),
    Hook(
        "vllm.model_executor.layers.mamba.ops.cpu.gdn_attention:_causal_conv1d_fwd_cpu",
        "a prompt of one pair on a CPU",
        parameters=("x", "query_start_loc", "cache_indices", "has_initial_state"),
    ),
    Hook(
        "vllm.v1.attention.backend:CommonAttentionMetadata.__init__",
        "what kernels are told of a batch",
        parameters=(
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "num_actual_tokens",
            "max_query_len",
            "max_seq_len",
            "slot_mapping",
            "positions",
            "_num_computed_tokens_cache",
            "_token_to_req_indices_cache",
        ),
    ),
    Hook(
        "vllm.v1.attention.backend:AttentionMetadataBuilder.build",
        "the same",
        parameters=("self", "common_prefix_len", "common_attn_metadata"),
    ),
    Hook(
        "vllm.v1.attention.backend:AttentionBackend.get_supported_kernel_block_sizes",
        "block sizes",
        parameters=("kv_cache_spec",),
    ),
    Hook("vllm.v1.attention.backend:AttentionBackend.supports_block_size", "the same", ("block_size",)),
    Hook("vllm.v1.attention.backend:AttentionBackend.get_preferred_block_size", "the same", ("default_block_size",)),
    Hook(
        f"{RUNNER}.calculate_reorder_batch_threshold",
        "a builder's decode threshold is in pairs, the runner's in tokens",
        mentions=("get_metadata_builder().reorder_batch_threshold", "self.reorder_batch_threshold ="),
    ),
    # model
    Hook("vllm.compilation.backends:set_model_tag", "the MTP head is compiled beside the backbone", ("tag",)),
    Hook("vllm.config.vllm:VllmConfig.with_hf_config", "the MTP head's own config", ("self", "hf_config")),
    Hook(
        "vllm.model_executor.models.llama:LlamaModel.forward",
        "decoders take latents for embeddings",
        ("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    # a step
    Hook(
        f"{RUNNER}._prepare_inputs", "pairs are scheduled whole", ("self", "scheduler_output", "num_scheduled_tokens")
    ),
    Hook(f"{RUNNER}._model_forward", "states of the pairs", ("self", "input_ids", "positions", "intermediate_tensors")),
    Hook(
        f"{RUNNER}.execute_model",
        "logits of token 1",
        mentions=("self._model_forward(", "hidden_states[logits_indices]", "set_forward_context("),
    ),
    Hook(f"{RUNNER}._dummy_run", "warm-up of the MTP head", ("self", "num_tokens")),
    Hook(f"{RUNNER}.initialize_kv_cache", "logits processors exist", ("self", "kv_cache_config")),
    Hook(f"{RUNNER}._sample", "token 1 and token 2", ("self", "logits", "spec_decode_metadata")),
    Hook(
        f"{RUNNER}._bookkeeping_sync",
        "two tokens a request",
        ("self", "scheduler_output", "sampler_output"),
        mentions=("self.input_batch.generators", "max_gen_len", "parse_output", "discard_request_mask"),
    ),
    Hook(
        f"{RUNNER}.__init__",
        "buffers that a step reads",
        mentions=("self.discard_request_mask", "self.query_start_loc", "self.optimistic_seq_lens_cpu"),
    ),
    Hook(
        "vllm.v1.worker.gpu_input_batch:InputBatch.__init__",
        "the batch's histories, tokens and generators",
        mentions=("self.req_output_token_ids", "self.token_ids_cpu", "self.generators", "self.logitsprocs"),
    ),
    Hook(
        "vllm.v1.worker.gpu_input_batch:InputBatch.refresh_metadata",
        "a new batch has new metadata",
        mentions=("self.sampling_metadata = self._make_sampling_metadata()",),
    ),
    Hook(
        "vllm.v1.sample.logits_processor.builtin:MinTokensLogitsProcessor.update_state",
        "min_tokens counts real tokens",
        ("self", "batch_update"),
        mentions=("self.min_toks", "self.add_request", "len(out_tok_ids)"),
    ),
    Hook("vllm.v1.sample.sampler:Sampler.forward", "the sampler, twice a step", ("self", "logits")),
    Hook("vllm.forward_context:override_forward_context", "the MTP head in the same batch", ("forward_context",)),
    Hook("vllm.utils.torch_utils:async_tensor_h2d", "copies that wait for nothing", ("data", "device", "dtype")),
    # the scheduler
    Hook(f"{SCHEDULER}.add_request", "an even prompt", ("self", "request")),
    Hook(
        f"{SCHEDULER}._update_request_with_output", "PADs are hidden", ("self", "request", "new_token_ids", "is_stale")
    ),
    Hook(
        f"{SCHEDULER}.update_from_output",
        "visible tokens go to grammar, logprobs and client",
        ("self", "scheduler_output", "model_runner_output"),
        mentions=("self._update_request_with_output(", "slice_request(req_index, len(new_token_ids))"),
    ),
    Hook(f"{SCHEDULER}.make_stats", "counts of drafts", ("self", "spec_decoding_stats")),
    Hook("vllm.v1.core.sched.utils:check_stop", "one token at a time", ("request", "max_model_len")),
    Hook(
        "vllm.v1.request:Request.__init__",
        "prompt and hashes of a request",
        mentions=("self._all_token_ids", "self.num_prompt_tokens", "self._block_hasher", "self.block_hashes"),
    ),
    Hook("vllm.v1.request:Request.update_block_hashes", "hashes grow by the hasher's output", ("self",)),
    Hook(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.cache_blocks",
        "a block is cached when the next token is known",
        ("self", "request", "num_computed_tokens"),
    ),
    Hook(
        "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots",
        "the one place that caches blocks",
        mentions=("self.coordinator.cache_blocks(request,",),
    ),
    Hook(
        "vllm.v1.core.kv_cache_utils:hash_block_tokens",
        "prefix hashes",
        ("hash_function", "parent_block_hash", "curr_block_token_ids", "extra_keys"),
    ),
    Hook(
        "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys",
        "prefix hashes",
        ("request", "start_token_idx", "end_token_idx", "start_mm_idx"),
    ),
    Hook(
        "vllm.v1.metrics.stats:RequestSpecDecodeMetrics.observe",
        "a request's statistics",
        ("self", "num_draft_tokens", "num_accepted"),
    ),
)


def moved(hook: Hook) -> str | None:
    """What this vLLM lacks of a hook, or None."""
    module, _, path = hook.where.partition(":")
    try:
        target: Any = import_module(module)
        for name in path.split("."):
            target = getattr(target, name)
    except (ImportError, AttributeError) as error:
        return f"{hook.where}: {error} ({hook.why})"
    target = target.fget if isinstance(target, property) else target
    lacking = [name for name in hook.parameters if name not in inspect.signature(target).parameters]
    if hook.mentions:
        source = inspect.getsource(target)
        lacking += [name for name in hook.mentions if name not in source]
    return f"{hook.where} lacks {', '.join(lacking)} ({hook.why})" if lacking else None
