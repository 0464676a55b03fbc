"""The student's answers by vLLM, in processes of its own: many at a time, with paged KV of half the size.

Before every rollout the engine takes over the trainer's weights, through a file: two processes need agree on nothing
else, and writing takes seconds where a rollout takes minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipo.decoding.engine import Completion
from pipo.training.distill.rollout import seeds
from pipo.training.recipe import Rollout
from pipo.vllm.engine import VllmEngine, engine_memory

WHOLE, OLD = ".modules_to_save.default.", ".original_module."
"""peft's names around modules that are trained whole."""
FILE = "model.safetensors"


class ServedStudent:
    """The model of a folder in vLLM. `close` ends its processes."""

    def __init__(self, folder: str, how: Rollout, dtype: str, answers: int) -> None:
        self.how, memory = how, engine_memory(1, share=how.memory_share)
        self.engine = VllmEngine.load(folder, dtype=dtype, max_num_seqs=answers, **memory)
        self.engine.keep_drafts()

    def take_over(self, model: Any) -> None:
        """Answer with these weights from here on: the PIPO model that is trained, with its adapters if it has any."""
        with tempfile.TemporaryDirectory(prefix="pipo-student-") as folder:
            whole = {name: tensor.contiguous() for name, tensor in merged_weights(model)}
            save_file(whole, Path(folder) / FILE)
            self.engine.take_over(folder)

    def roll_out(self, prompts: Sequence[Sequence[int]], seed: str, first: int = 0) -> list[Completion]:
        """One answer a prompt; as `pipo.training.distill.rollout.roll_out`, by vLLM's draws."""
        return self.engine.complete(
            prompts,
            sampling=self.how,
            max_new_tokens=self.how.max_new_tokens,
            threshold=self.how.threshold,
            seeds=seeds(seed, first, len(prompts)),
            with_rejected=True,
        )

    def close(self) -> None:
        self.engine.close()


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's names and tensors, adapters merged into copies of what they adapt."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tied = base.config.get_text_config().tie_word_embeddings
    for name, tensor in base.state_dict().items():
        if ".lora_" in name or OLD in name or (tied and name == "lm_head.weight"):
            continue
        owner, _, leaf = name.rpartition(".")
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            layer: Any = base.get_submodule(owner)
            if leaf == "weight":
                for adapter in layer.active_adapters:
                    tensor = tensor + layer.get_delta_weight(adapter).to(tensor.dtype)
            name = f"{owner}.{leaf}"
        yield name.replace(WHOLE, "."), tensor
