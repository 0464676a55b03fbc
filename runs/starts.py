"""Losses of a converted model before any training, for each start of the compressor and of the MTP head.

usage: python runs/starts.py BASE CHAT.jsonl [FOLDER]     FOLDER: save every start there, to train from
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipo.convert.base import load_base, load_tokenizer
from pipo.convert.from_base import RESIDUAL, from_base
from pipo.convert.save import save_model
from pipo.convert.shipped import resolve
from pipo.data.batch import Collator
from pipo.data.datasets import ChatDataset, PairDataset

EXAMPLES = 8


def random_fusion(model: Any) -> None:
    """MTP: the fusion drawn from N(0, 0.02)"""
    model.mtp.fc.weight.normal_(0, 0.02)


def random_compressor(model: Any) -> None:
    """compressor: drawn from N(0, 0.02), no residual"""
    for parameter in model.compressor.parameters():
        parameter.normal_(0, 0.02)


def as_it_is(_: Any) -> None:
    """Nothing is changed."""


@dataclass(frozen=True)
class Start:
    """A way to start training. `residual` and `compressor` are `from_base`'s."""

    title: str
    residual: float = RESIDUAL
    compressor: str = "mlp"
    change: Callable[[Any], None] = as_it_is


STARTS = {
    "ours": Start(f"ours: compressor mlp, residual {RESIDUAL}; MTP: last layer, final norm, mean of the inputs"),
    "sum": Start("compressor: residual 1, a + b", residual=1.0),
    "mean": Start("compressor: residual 0.5, the mean", residual=0.5),
    "released": Start("compressor: as released, SiLU(a) + SiLU(b)", residual=0.0),
    "random": Start(str(random_compressor.__doc__), residual=0.0, change=random_compressor),
    "linear": Start(f"compressor: linear, residual {RESIDUAL}", compressor="linear"),
    "mtp_random_fusion": Start(str(random_fusion.__doc__), change=random_fusion),
}


@torch.no_grad()
def make(start: Start, base: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    model = from_base(load_base(base, dtype="float32"), start.compressor, tokenizer=tokenizer, residual=start.residual)
    start.change(model)
    return model


@torch.no_grad()
def main(base: str, file: str, folder: str | None = None) -> None:
    source = resolve(base)
    tokenizer = load_tokenizer(source)
    pad = tokenizer.pad_token_id
    pairs = PairDataset(ChatDataset([file], tokenizer, max_length=512), pad, scheme="none", max_ratio=0, seed=0)
    batch = Collator(pad)([pairs[i] for i in range(EXAMPLES)])
    print("| start | backbone loss | draft loss |\n|---|---|---|")
    for name, start in STARTS.items():
        model = make(start, source, tokenizer)
        out = model(**batch)
        print(f"| {start.title} | {out.backbone_loss:.2f} | {out.mtp_loss:.2f} |", flush=True)
        if folder is not None:
            save_model(model, tokenizer, Path(folder) / name, base=base)


if __name__ == "__main__":
    main(*sys.argv[1:])
