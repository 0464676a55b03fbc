"""vLLM behind the interface of `pipo.decoding.engine.LocalEngine`: prompts in, completions out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipo.convert.shipped import resolve
from pipo.data.chat import encode_prompt
from pipo.decoding.engine import Completion
from pipo.decoding.options import Sampling
from pipo.errors import UsageError
from pipo.pairing import Slot
from pipo.vllm.requests import DETAILED, FORCE, RECORD, THRESHOLD
from pipo.vllm.supported import check_version

SETTINGS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a process that has used torch's threads must not be forked
}
"""Of vLLM's environment, where the user has not set them."""
KV_BYTES = 256 << 20
CPU_BYTES = 1 << 30
"""Of the caches of all engines that share a CPU."""
GPU_SHARE = 0.9
"""Of a GPU's memory, for all engines that share it."""


def engine_memory(engines: int, replicas: int = 1, share: float = GPU_SHARE) -> dict[str, Any]:
    """Settings of each of several engines that have this share of a GPU, or with their replicas a CPU, to themselves.

    Raises `UsageError`.
    """
    check_version()
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return {"kv_cache_memory_bytes": CPU_BYTES // (engines * replicas)}
    return {"kv_cache_memory_bytes": None, "gpu_memory_utilization": share / engines}


def find_folder(source: str) -> str:
    """The folder or hub id that vLLM reads. Raises `UsageError` for another file or folder."""
    folder = resolve(source)
    if Path(folder).exists() and not Path(folder, "config.json").is_file():
        raise UsageError("model", f"{source} is no model folder", "vLLM reads Hugging Face folders")
    return folder


class VllmEngine:
    """A model in a vLLM engine of its own. `close` ends its processes."""

    def __init__(self, llm: Any, folder: str) -> None:
        self.llm, self.folder = llm, folder
        self.tokenizer = llm.get_tokenizer()
        self.config = llm.llm_engine.vllm_config.model_config.hf_config
        self.is_pipo = self.config.model_type == "pipo"
        self.statistics: list[Any] = []  # vLLM's, of every request of the last batch; None without speculation

    @classmethod
    def load(cls, source: str, *, dtype: str = "auto", **settings: Any) -> VllmEngine:
        """`source`: folder, hub id, `demo` or `demo-base`. `settings` are of `vllm.LLM`. Raises `UsageError`."""
        check_version()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        folder = find_folder(source)
        from vllm import LLM
        from vllm.platforms import current_platform

        if dtype == "auto" and current_platform.is_cpu():
            dtype = "bfloat16"
        settings = {"kv_cache_memory_bytes": KV_BYTES, "disable_log_stats": False} | settings
        return cls(LLM(folder, dtype=dtype, **settings), folder)

    def encode(self, prompt: str | Sequence[dict[str, Any]], thinking: bool | None = None, **options: Any) -> list[int]:
        """A question or chat messages -> the ids of the templated prompt; `thinking` and `options` as in `render`."""
        return encode_prompt(self.tokenizer, prompt, thinking=thinking, **options)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        max_new_tokens: int,
        threshold: float | None = None,
        force_acceptance: float | None = None,
        seeds: Sequence[int] | None = None,
        ignore_eos: bool = False,
        arrived: float | None = None,
        with_rejected: bool = False,
    ) -> list[Completion]:
        """Decode a batch. In the slots PAD stands for rejected drafts, unless `with_rejected` and `keep_drafts`.

        Times are vLLM's own, from a request's arrival in its front end; `arrived` is not used.
        """
        from vllm import SamplingParams

        extra: dict[str, Any] = {DETAILED: True} if self.is_pipo else {}
        if threshold is not None:
            extra[THRESHOLD] = threshold
        if force_acceptance is not None:
            extra[FORCE] = force_acceptance
        params = [
            SamplingParams(
                **sampling.draws(),
                max_tokens=max_new_tokens,
                seed=None if seeds is None else seeds[row],
                ignore_eos=ignore_eos,
                extra_args=extra | ({RECORD: str(row)} if with_rejected else {}),
            )
            for row in range(len(prompts))
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        self.statistics = [out.outputs[0].spec_decode_metrics for out in outputs]
        drafts = self.llm.collective_rpc("take_drafts")[0] if with_rejected else {}
        return [self._completion(out, prompts[row], drafts.get(str(row))) for row, out in enumerate(outputs)]

    def keep_drafts(self) -> None:
        """From here on `complete` can say what was drafted and rejected."""
        self.llm.collective_rpc("keep_drafts")

    def take_over(self, folder: str) -> None:
        """Go on with the weights of another folder, of the same model; nothing cached is kept."""
        self.llm.collective_rpc("take_over", args=(folder,))
        self.llm.reset_prefix_cache()

    def _completion(self, out: Any, prompt: Sequence[int], drafts: Sequence[int] | None) -> Completion:
        answer, times = out.outputs[0], out.metrics
        tokens = list(answer.token_ids)
        slots = self._slots(tokens, answer.spec_decode_metrics, drafts)
        later = len(tokens) - len(slots[0].tokens)
        return Completion(
            prompt=list(prompt),
            slots=slots,
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),  # vLLM holds back half a character
            finish_reason=answer.finish_reason,
            ttft_ms=1000 * times.first_token_latency,
            tpot_ms=1000 * (times.last_token_ts - times.first_token_ts) / later if later else None,
        )

    def _slots(self, tokens: list[int], statistics: Any, drafts: Sequence[int] | None) -> list[Slot]:
        """Who came with whom, by the statistics of the request. `drafts`: one a step, as far as they are known."""
        if not self.is_pipo:
            return [Slot(token) for token in tokens]
        left, slots = iter(tokens), []
        steps = zip(statistics.per_step_drafted, statistics.per_step_accepted, strict=True)
        for step, (drafted, accepted) in enumerate(steps):
            token1 = next(left)
            rejected = drafts[step] if drafts else self.config.pad_token_id
            draft = next(left) if accepted else rejected if drafted else None
            slots.append(Slot(token1, draft, None, bool(accepted)))
        assert next(left, None) is None, "vLLM's statistics do not cover the answer"
        return slots

    def kv_bytes_per_token(self) -> float:
        """The cache's bytes, of all ranks, by the tokens that vLLM says it holds."""
        config = self.llm.llm_engine.vllm_config
        cache = config.cache_config
        bytes_ = cache.kv_cache_memory_bytes * config.parallel_config.tensor_parallel_size
        return float(bytes_ / (cache.num_gpu_blocks * cache.block_size))

    def close(self) -> None:
        """End the engine's processes."""
        self.llm.llm_engine.engine_core.shutdown()
