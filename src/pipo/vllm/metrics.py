"""Counts of drafts under vLLM's own names: a request's statistics and the Prometheus counters of its speculation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.spec_decode.metrics import SpecDecodingProm

DRAFTS_A_STEP = 1


class DraftCounters(SpecDecodingProm):
    """vLLM makes these counters for its own speculation only; here they appear with the first draft."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.created_with = args[1:]

    def observe(self, spec_decoding_stats: Any, engine_idx: int = 0) -> None:
        if not self.spec_decoding_enabled:
            super().__init__(SimpleNamespace(num_speculative_tokens=DRAFTS_A_STEP), *self.created_with)
        super().observe(spec_decoding_stats, engine_idx)


def count_drafts() -> None:
    """Let vLLM's Prometheus logger use them."""
    PrometheusStatLogger._spec_decoding_cls = DraftCounters
