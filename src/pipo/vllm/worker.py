"""vLLM's worker of this platform, with a runner that steps in pairs."""

from __future__ import annotations

from typing import Any

from vllm.config import set_current_vllm_config
from vllm.platforms import current_platform

from pipo.vllm.runner import PairRunner

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as StockWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as StockWorker


class PairWorker(StockWorker):
    """The same conversion serves CPU and GPU runners."""

    def init_device(self) -> None:
        super().init_device()
        stock: Any = type(self.model_runner)
        self.model_runner.__class__ = type(f"Pair{stock.__name__}", (PairRunner, stock), {})

    # -- for a trainer, over `collective_rpc` --------------------------------------------------------------------------

    def keep_drafts(self) -> None:
        """From here on, note the drafts of requests that have a name for it."""
        self.model_runner.pair_drafts = {}

    def take_drafts(self) -> dict[str, list[int]]:
        """By name, one a step; they are forgotten here."""
        drafts, self.model_runner.pair_drafts = self.model_runner.pair_drafts, {}
        return drafts or {}

    def take_over(self, folder: str) -> None:
        """Replace the weights by those of a folder."""
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.reload_weights(weights_path=folder)
