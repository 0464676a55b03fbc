"""Loss of a converted model before any training, for each start of the compressor.

usage: python runs/compressor_starts.py BASE CHAT.jsonl
"""

import sys

import torch

from pipo.convert import from_base
from pipo.base import load_base, load_tokenizer
from pipo.data.batch import Collator
from pipo.data.chat import ChatDataset, PairDataset
from pipo.shipped import resolve

EXAMPLES = 8
STARTS = {"residual 1 (a + b)": 1.0, "residual 0.7": 0.7, "residual 0.5 (mean)": 0.5, "released: SiLU(a) + SiLU(b)": 0.0}


def main(base: str, file: str) -> None:
    source = resolve(base)
    tokenizer = load_tokenizer(source)
    print("| start | backbone loss | draft loss |\n|---|---|---|")
    for name, residual in STARTS.items():
        model = from_base(load_base(source, dtype="float32"), tokenizer=tokenizer, residual=residual)
        chats = ChatDataset([file], tokenizer, max_length=512)
        pairs = PairDataset(chats, model.config.pad_token_id, scheme="none", max_ratio=0, seed=0)
        batch = Collator(model.config.pad_token_id)([pairs[i] for i in range(EXAMPLES)])
        with torch.no_grad():
            out = model(**batch)
        print(f"| {name} | {out.backbone_loss:.2f} | {out.mtp_loss:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
