"""Counts of drafts under vLLM's own names: the Prometheus counters that it makes for its own speculation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from pipo.vllm.settings import is_pipo

DRAFTS_A_STEP = 1


def count_drafts() -> None:
    """Let vLLM's Prometheus logger have its counters of drafts for PIPO models too."""
    stock = PrometheusStatLogger._spec_decoding_cls

    def counters(logger: Any) -> Any:
        def with_drafts(_: None, *args: Any, **kwargs: Any) -> Any:
            return stock(SimpleNamespace(num_speculative_tokens=DRAFTS_A_STEP), *args, **kwargs)

        return with_drafts if is_pipo(logger.vllm_config) else stock

    PrometheusStatLogger._spec_decoding_cls = property(counters)
