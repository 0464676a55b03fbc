"""Peak memory of one training step against sequence length, with and without the LM-head losses.

`python runs/training_memory.py` measures each case in a fresh process and prints a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HIDDEN, VOCAB = 64, 151_936


def measure(length: int, losses: bool, train_head: bool) -> dict[str, float]:
    """Bytes above the level before the step, at its peak. With `losses` off, the heads' losses are sums of hiddens."""
    model = tiny_width(length, num_key_value_heads=2, tie_word_embeddings=False)
    model.get_input_embeddings().requires_grad_(False)
    model.lm_head.requires_grad_(train_head)
    ids = torch.randint(1, VOCAB, (1, length))
    model(input_ids=ids[:, :64], labels=ids[:, :64]).loss.backward()  # kernels and gradients exist before the step
    gc.collect()
    peak = watch_peak()
    if losses:
        model(input_ids=ids, labels=ids).loss.backward()
    else:
        out = model(input_ids=ids)
        (out.backbone_hidden_states.sum() + out.mtp_hidden_states.sum()).backward()
    return {"bytes": peak()}


def tiny_width(length: int, **changes: Any) -> Any:
    """A random PIPO model of tiny width, with a large vocabulary."""
    from transformers import LlamaConfig

    from pipo import PipoConfig, PipoForCausalLM

    fields = {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0, "max_position_embeddings": length,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return PipoForCausalLM(PipoConfig(backbone_config=LlamaConfig(**fields | changes), pad_token_id=0))


def watch_peak() -> Callable[[], float]:
    """From now on: call the result for the peak's bytes above the present level."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return lambda: _status("VmHWM") - before


def _status(field: str) -> int:
    """A memory figure of this process in bytes (Linux): VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def allowed(reference: float, train_head: bool) -> float:
    """The bound: 1.3 x the step without losses + three [1024, V] float32 tensors (+ the LM head's gradient)."""
    return 1.3 * reference + 3 * 1024 * VOCAB * 4 + (VOCAB * HIDDEN * 4 if train_head else 0)


def in_new_process(length: int, losses: bool, train_head: bool = False) -> float:
    """`measure` in a process of its own, so that peaks do not hide each other."""
    flags = ["--length", str(length), *(["--losses"] if losses else []), *(["--train-head"] if train_head else [])]
    run = [sys.executable, __file__, "--measure", *flags]
    return float(json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)["bytes"])


def main() -> None:
    """The table, or one measurement for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="one case, as JSON")
    parser.add_argument("--length", type=int, default=4096, help="tokens")
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--train-head", action="store_true")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.length, args.losses, args.train_head)))
        return
    print(f"vocabulary {VOCAB:,}; MB above the level before the step\n")
    print("| tokens | whole logits would take | without losses | with losses | allowed |\n|---|---|---|---|---|")
    for length in (1024, 2048, 4096, 8192):
        reference, real = in_new_process(length, False), in_new_process(length, True)
        whole = (length - 2) * VOCAB * 4
        columns = (whole, reference, real, allowed(reference, False))
        print(f"| {length} | " + " | ".join(f"{value / 1e6:.0f}" for value in columns) + " |")


if __name__ == "__main__":
    main()
