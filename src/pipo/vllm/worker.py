"""vLLM's worker of this platform, with a runner that steps in pairs."""

from __future__ import annotations

from typing import Any

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
