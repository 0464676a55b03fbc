"""Teacher-forced losses of PIPO models on chats that they were not trained on, laid out as decoding would.

Each row is a model, each column a share of rejected drafts (they shift what follows).

usage: python runs/heldout_loss.py CHAT.jsonl MODEL...
"""

import random
import sys

import torch

from pipo import PipoForCausalLM
from pipo.convert.base import load_tokenizer
from pipo.convert.shipped import resolve
from pipo.data.batch import Collator
from pipo.data.datasets import ChatDataset
from pipo.data.layout import lay_out

BATCH = 16
REJECTED = (0.0, 0.25, 0.5, 1.0)


def row(item: dict[str, list[int]], pad: int, ratio: float, index: int) -> dict[str, list[int]]:
    """A conversation in pairs, that share of its drafts rejected."""
    layout = lay_out(item["input_ids"], item["labels"], pad, "shift", ratio, random.Random(index))
    return {"input_ids": layout.ids, "labels": layout.labels}


@torch.no_grad()
def losses(source: str, file: str) -> list[str]:
    """Backbone loss / draft loss at every share of `REJECTED`."""
    model = PipoForCausalLM.from_pretrained(resolve(source), dtype="float32").eval()
    pad = model.config.pad_token_id
    chats = ChatDataset([file], load_tokenizer(resolve(source)), max_length=512)
    cells = []
    for ratio in REJECTED:
        rows = [row(item, pad, ratio, index) for index, item in ((i, chats[i]) for i in range(len(chats)))]
        totals: dict[str, torch.Tensor] = {}
        for start in range(0, len(rows), BATCH):
            batch = Collator(pad)(rows[start : start + BATCH])
            for name, pair in model(**batch).metrics.items():
                totals[name] = totals.get(name, 0) + pair
        mean = {name: float(pair[0] / pair[1].clamp(min=1)) for name, pair in totals.items()}
        draft = f"{mean['mtp_loss']:.3f}" if totals["mtp_loss"][1] else "-"
        cells.append(f"{mean['backbone_loss']:.3f} / {draft}")
    return cells


def main(file: str, *models: str) -> None:
    print("| model | " + " | ".join(f"{ratio:.0%} rejected" for ratio in REJECTED) + " |")
    print("|---" * (1 + len(REJECTED)) + "|")
    for model in models:
        print(f"| {model} | " + " | ".join(losses(model, file)) + " |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
