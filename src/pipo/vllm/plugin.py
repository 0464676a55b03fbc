"""What vLLM's entry point group `vllm.general_plugins` loads, in every process."""

from __future__ import annotations

import logging
from typing import Any

from pipo.errors import UsageError
from pipo.vllm.supported import ARCHITECTURE, HYBRID_ARCHITECTURE, check_version

log = logging.getLogger("vllm.pipo")


def register() -> None:
    """Make vLLM load PIPO folders. With another vLLM than the supported one these are refused, and nothing else is."""
    import pipo  # noqa: F401 - its config is registered with transformers

    try:
        check_version()
    except UsageError as error:
        _refuse_models(str(error))
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from pipo.vllm import metrics, requests, settings

    ModelRegistry.register_model(ARCHITECTURE, "pipo.vllm.model:ServedPipo")
    ModelRegistry.register_model(HYBRID_ARCHITECTURE, "pipo.vllm.model:ServedHybridPipo")
    MODELS_CONFIG_MAP |= {ARCHITECTURE: settings.PairSettings, HYBRID_ARCHITECTURE: settings.PairSettings}
    settings.keep_first_runner()
    requests.check_all_requests()
    metrics.count_drafts()


def _refuse_models(reason: str) -> None:
    """Where this vLLM still allows it, loading a PIPO model raises the reason; the log has it in any case."""
    log.error("PIPO models cannot be served: %s", reason)
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
        from vllm.model_executor.models.llama import LlamaForCausalLM
    except ImportError:
        return

    class Refused:
        @staticmethod
        def verify_and_update_model_config(_: Any) -> None:
            raise ValueError(reason)

    ModelRegistry.register_model(ARCHITECTURE, LlamaForCausalLM)  # never built
    MODELS_CONFIG_MAP[ARCHITECTURE] = Refused
