"""`pipo bench --engine vllm`: the same measurements inside vLLM, every method in an engine of its own, side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pipo.decoding.engine import LocalEngine
from pipo.decoding.options import GREEDY
from pipo.measure.bench.cell import Cell, Trial, random_prompts
from pipo.measure.bench.local import own_backbone
from pipo.measure.bench.options import BenchOptions, pick_methods
from pipo.model.families import load_config
from pipo.vllm.engine import GPU_SHARE, VllmEngine, find_folder

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 4}


class VllmBed:
    """Engines of the same vLLM with the same settings; prefix caching is off, so that every prompt is read."""

    def __init__(self, options: BenchOptions) -> None:
        self.options, self.engines = options, dict[str, VllmEngine]()
        self.is_pipo = load_config("MODEL", find_folder(options.model)).model_type == "pipo"
        self.methods = pick_methods(options, self.is_pipo)
        self.folder = tempfile.TemporaryDirectory(prefix="pipo-bench-")
        try:
            for method in self.methods:
                self.engines[method] = self._load(method)
        except BaseException:
            self.close()
            raise
        first = next(iter(self.engines.values()))
        self.dtype = str(first.llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")

    def _load(self, method: str) -> VllmEngine:
        options = self.options
        longest = max(options.prompt_lengths) + options.new_tokens + 4
        settings: dict[str, Any] = {
            "max_model_len": longest + longest % 2,
            "max_num_seqs": max(options.concurrency),
            "enable_prefix_caching": False,
            "gpu_memory_utilization": GPU_SHARE / len(self.methods),
        }
        if method == "ngram":
            settings |= {"speculative_config": NGRAM, "per_request_spec_decode_metrics": "summary"}
        return VllmEngine.load(self._source(method), dtype=options.dtype, **settings, **self._cache(method))

    def _source(self, method: str) -> str:
        """The model's folder; for the others the base's, or the model's own backbone, saved uncompressed."""
        if method == "pipo":
            return self.options.model
        if self.options.base is not None or not self.is_pipo:
            return self.options.base or self.options.model
        plain = Path(self.folder.name) / "backbone"
        if not plain.exists():
            engine = LocalEngine.load(self.options.model, dtype="auto")
            own_backbone(engine.model).save_pretrained(plain)
            engine.tokenizer.save_pretrained(plain)
        return str(plain)

    def _cache(self, method: str) -> dict[str, int]:
        """Room for the largest batch, so that the engines can stand side by side and none preempts."""
        config = load_config("--base", find_folder(self._source(method))).get_text_config()
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        entry = 2 * config.num_key_value_heads * heads * 4 * (config.num_hidden_layers + 1)
        longest = max(self.options.prompt_lengths) + self.options.new_tokens + 512
        return {"kv_cache_memory_bytes": max(64 << 20, entry * longest * max(self.options.concurrency))}

    def measure(self, cell: Cell, trial: int) -> Trial:
        engine, options = self.engines[cell.method], self.options
        pad = engine.config.pad_token_id or 0
        prompts = random_prompts(cell, options.seed + trial, engine.config.get_text_config().vocab_size, pad)
        judged: dict[str, Any] = {}
        if cell.method == "pipo":
            judged = {"threshold": options.threshold, "force_acceptance": options.force_acceptance}
        start = time.perf_counter()
        done = engine.complete(
            prompts,
            sampling=GREEDY,
            max_new_tokens=options.new_tokens,
            ignore_eos=True,
            **judged,
        )
        seconds = time.perf_counter() - start
        tokens = sum(len(one.token_ids) for one in done)
        drafts = [one.to_dict() for one in engine.statistics if one is not None]
        accepted = sum(one["num_accepted_draft_tokens"] for one in drafts)
        return Trial(
            ttft_ms=statistics.median(one.ttft_ms or 0 for one in done),
            tpot_ms=statistics.median(one.tpot_ms or 0 for one in done),
            tokens_per_second=tokens / seconds,
            tokens=tokens,
            steps=tokens - accepted,
            drafted=sum(one["num_draft_tokens"] for one in drafts),
            accepted=accepted,
            kv_bytes=round(engine.kv_bytes_per_token() * (cell.concurrency * cell.prompt_length + tokens)),
        )

    def limit(self, regular: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
        return {}

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        self.folder.cleanup()
