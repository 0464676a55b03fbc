"""The memory that `--dry-run` estimates beside what real training steps take.

`python runs/training_estimate.py` trains a model of tiny width and a vocabulary of 151,936 for two steps a case,
each in a fresh process, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_memory import VOCAB, tiny_width, watch_peak

from pipo.data.batch import Collator
from pipo.training.plan.estimate import measure
from pipo.training.recipe import SftRecipe
from pipo.training.sft import student, train_arguments
from pipo.training.trainer import PairTrainer

STEPS = 2  # Adam's state is there from the second on
LENGTHS = (4096, 16384, 65536)
CASES = {
    f"{part}{', checkpointing' if checkpoint else ''}{', bf16' if bf16 else ''}": {
        "lora": {"rank": 16} if part == "LoRA" else None,
        "trainer": {"gradient_checkpointing": checkpoint, "bf16": bf16},
    }
    for part in ("full", "LoRA")
    for checkpoint in (False, True)
    for bf16 in (False, True)
}

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives freed tensors back at once, so that the process is as large as what is alive in it."""


def recipe(folder: str, case: str) -> SftRecipe:
    """The case's recipe for the model in `folder`."""
    fields = {"model": folder, "output": folder + "/out", "data": {"train": ["none"]}, "pads": {"scheme": "none"}}
    trainer = {"max_steps": STEPS, "per_device_train_batch_size": 1, "save_strategy": "no", "use_cpu": True}
    chosen: dict[str, Any] = CASES[case]
    return SftRecipe.model_validate(fields | chosen | {"trainer": trainer | chosen["trainer"]})


class Rows(list[dict[str, list[int]]]):
    """Examples, and their lengths."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self])


def compare(case: str, length: int) -> dict[str, float]:
    """Estimated and measured bytes above the level of a process that has no model yet."""
    ids = torch.randint(1, VOCAB, (length,)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        tiny_width(length).save_pretrained(folder)
        how = recipe(folder, case)
        args = train_arguments(how)
        estimated = measure(how, args, Rows([{"input_ids": ids, "labels": ids}])).total
        warm = torch.randn(64, 64, requires_grad=True)
        (warm @ warm).sum().backward()
        peak = watch_peak()
        trainer = PairTrainer(
            model=student(how, args),
            args=args,
            train_dataset=[{"input_ids": ids, "labels": ids}] * STEPS,
            data_collator=Collator(0),
            recipe=how,
            pad=0,
        )
        trainer.train()
        return {"estimated": estimated, "measured": peak()}


def in_new_process(case: str, length: int) -> dict[str, float]:
    """`compare` in a process of its own, so that peaks do not hide each other."""
    run = [sys.executable, __file__, "--measure", "--case", case, "--length", str(length)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=os.environ | GIVEN_BACK)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The table, or one measurement for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="one case, as JSON")
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--length", type=int, nargs="+", default=LENGTHS, help="tokens")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(compare(args.case[0], args.length[0])))
        return
    print("| training | tokens | estimated MB | measured MB | estimate / measured |\n|---|---|---|---|---|")
    for case in args.case:
        for length in args.length:
            found = in_new_process(case, length)
            ratio = found["estimated"] / found["measured"]
            mb = (found["estimated"] / 1e6, found["measured"] / 1e6)
            print(f"| {case} | {length} | {mb[0]:.0f} | {mb[1]:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    Path("/proc/self/status").exists() or sys.exit("this measures with Linux's /proc")
    main()
