"""What the local decoder answers, and what the trainer's forward says it should."""

import tiny
import torch

from pipo.decoding.reader import left_pad
from pipo.model.shortlist import restrict
from pipo.pairing import pad_to_even

THRESHOLDS = (0.0, 0.5, 1.5)
LENGTHS = (1, 2, 3, 7, 8, 20, 33, 50)


def prompts():
    return tiny.prompts(LENGTHS)


def decode(model, rows, **kwargs):
    ids, mask = left_pad(rows, model.config.pad_token_id, "cpu")
    options = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    return model.generate(input_ids=ids, attention_mask=mask, **options | kwargs)


def new_tokens(out, row):
    return [token for slot in out.slots[row] for token in slot.tokens]


@torch.no_grad()
def uncached(model, prompt, threshold, count):
    """The definition: argmax of the trainer's forward, grown a pair at a time."""
    pad, ids, out = model.config.pad_token_id, pad_to_even(prompt, model.config.pad_token_id), []

    def best(logits):
        return int(logits.index_fill(0, torch.tensor([pad]), float("-inf")).argmax())

    while len(out) < count:
        token1 = best(model(input_ids=torch.tensor([[*ids, 5, 5]]), return_logits=True).logits[0, -2])
        full = model(input_ids=torch.tensor([[*ids, token1, 5]]), return_logits=True)
        token2 = best(restrict(full.mtp_logits[0, -1], model.draft_ids))
        confidence = torch.sigmoid(full.confidence_logits[0, -1])
        keep = len(out) + 1 < count and bool(confidence >= threshold)
        out += [token1, token2] if keep else [token1]
        ids += [token1, token2 if keep else pad]
    return out
