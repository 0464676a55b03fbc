"""The memory of training Qwen3.5's sizes on one GPU, as `--dry-run` counts it: the table of docs/reproduce.md.

usage: python runs/memory_table.py

Configs alone are needed, in the shapes of the released models; nothing of that size is allocated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers import Qwen3_5TextConfig

from pipo import PipoConfig
from pipo.training.plan.estimate import GB, measure, size
from pipo.training.recipe import DistillRecipe, SftRecipe
from pipo.training.sft import train_arguments

SIZES = {"4B": (2560, 9216), "9B": (4096, 12288)}
"""Hidden size and that of the MLP; all else is the same."""
KINDS = ["linear_attention"] * 3 + ["full_attention"]
TRAINER = {"bf16": True, "gradient_checkpointing": True, "per_device_train_batch_size": 1, "use_cpu": True}
CASES = (("4B", "SFT", 8192), ("4B", "SFT", 65536), ("9B", "SFT", 65536), ("4B", "OPD", 16384), ("9B", "OPD", 16384))
"""Student, stage and longest example in tokens, or answer of which every draft was rejected, so twice the positions."""


def backbone(hidden: int, inner: int) -> Qwen3_5TextConfig:
    """The text model's."""
    return Qwen3_5TextConfig(
        vocab_size=248_320,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        layer_types=KINDS * 8,
        tie_word_embeddings=hidden == SIZES["4B"][0],
        max_position_embeddings=262_144,
        dtype="bfloat16",
    )


def write(folder: Path) -> dict[str, dict[str, str]]:
    """Size -> the folders of a base's and a PIPO model's config."""
    found = {}
    for name, shape in SIZES.items():
        places = {kind: str(folder / f"{name}-{kind}") for kind in ("base", "pipo")}
        config = backbone(*shape)
        config.architectures = ["Qwen3_5ForCausalLM"]
        config.save_pretrained(places["base"])
        PipoConfig(backbone_config=config, compressor_residual=1.0, pad_token_id=0, dtype="bfloat16").save_pretrained(
            places["pipo"]
        )
        found[name] = places
    return found


def row(folders: dict[str, dict[str, str]], student: str, stage: str, tokens: int) -> list[str]:
    """One line of the table."""
    shared: dict[str, Any] = {
        "model": folders[student]["pipo"],
        "output": folders[student]["pipo"] + "/out",
        "data": {"train": ["none"]},
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "lora": {"rank": 64},
        "trainer": TRAINER,
    }
    taught_by = folders["9B"]["base"]
    if stage == "SFT":
        how: SftRecipe | DistillRecipe = SftRecipe(pads={"scheme": "none"}, **shared)
        ids = [1] * tokens
        data: Any = Rows([{"input_ids": ids, "labels": ids}])
    else:
        how = DistillRecipe(teacher=taught_by, rollout={"max_new_tokens": tokens - 1024}, **shared)
        data = SimpleNamespace(lengths=np.array([1023]))
    memory = measure(how, train_arguments(how), data, kernels=True)
    teacher = 2 * size(taught_by) if stage == "OPD" else 0
    parts = (memory.weights - teacher, teacher, memory.adam, memory.step, memory.total)
    return [student, stage, f"{tokens:,}", *(f"{part / GB:.1f}" for part in parts)]


class Rows(list[dict[str, list[int]]]):
    """Examples, and their lengths."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self])


def main() -> None:
    print("| student | stage | tokens | weights | teacher | Adam | gradients, states, logits | sum, GB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folders = write(Path(folder))
        for case in CASES:
            print(f"| {' | '.join(row(folders, *case))} |", flush=True)


if __name__ == "__main__":
    main()
