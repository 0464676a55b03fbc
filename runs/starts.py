"""Losses of a converted model before any training, for each start of the compressor and of the MTP head.

usage: python runs/starts.py BASE CHAT.jsonl
"""

import sys
from typing import Any

import torch
from torch import Tensor

from pipo.base import load_base, load_tokenizer
from pipo.convert import RESIDUAL, from_base
from pipo.data.batch import Collator
from pipo.data.chat import ChatDataset, PairDataset
from pipo.shipped import resolve

EXAMPLES = 8
COMPRESSOR = {
    "residual 1: a + b": 1.0,
    f"residual {RESIDUAL}: ours": RESIDUAL,
    "residual 0.5: the mean": 0.5,
    "as released: SiLU(a) + SiLU(b)": 0.0,
}


def plain_copy(model: Any) -> None:
    """The backbone's last layer and final norm as they are; the fusion is the mean of its two normalised inputs."""
    size = model.config.hidden_size
    model.mtp.decoder.norm.load_state_dict(model.backbone.norm.state_dict())
    model.mtp.pre_fc_norm_hidden.weight.fill_(1)
    model.mtp.fc.weight.copy_(torch.eye(size).repeat(1, 2) * 0.5)


def random_fusion(model: Any) -> None:
    """As `plain_copy`, the fusion drawn from N(0, 0.02)."""
    plain_copy(model)
    model.mtp.fc.weight.normal_(0, 0.02)


def ours(_: Any) -> None:
    """`MtpHead.grow`."""


@torch.no_grad()
def losses(base: str, tokenizer: Any, batch: dict[str, Tensor], residual: float, change: Any = ours) -> str:
    model = from_base(load_base(base, dtype="float32"), tokenizer=tokenizer, residual=residual)
    change(model)
    out = model(**batch)
    return f"{out.backbone_loss:.2f} | {out.mtp_loss:.2f}"


def main(base: str, file: str) -> None:
    source = resolve(base)
    tokenizer = load_tokenizer(source)
    pairs = PairDataset(
        ChatDataset([file], tokenizer, max_length=512), tokenizer.pad_token_id, scheme="none", max_ratio=0, seed=0
    )
    batch = Collator(tokenizer.pad_token_id)([pairs[i] for i in range(EXAMPLES)])
    print("| compressor's start | backbone loss | draft loss |\n|---|---|---|")
    for name, residual in COMPRESSOR.items():
        print(f"| {name} | {losses(source, tokenizer, batch, residual)} |", flush=True)
    print("\n| MTP head's start | backbone loss | draft loss |\n|---|---|---|")
    for change in (plain_copy, random_fusion, ours):
        name = (change.__doc__ or "").splitlines()[0]
        print(f"| {name} | {losses(source, tokenizer, batch, RESIDUAL, change)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
