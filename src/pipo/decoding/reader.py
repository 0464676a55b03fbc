"""How a step reads: whole pairs (PIPO) or single tokens (regular decoding), with their caches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipo.decoding.cache import kv_bytes, make_cache
from pipo.pairing import pad_to_even, pair_mask, pair_positions
from pipo.shortlist import Shortlist


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:  # [B, T], mask [B, T]
    """Rows of ids to one batch, padded at the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device)[None] >= width - lengths[:, None]).long()


class _Positions:
    """Mask and rotary positions of a left-padded batch; both None (the model's own default) where nothing is padded."""

    def __init__(self, mask: Tensor) -> None:  # [B, L]
        self.mask = None if bool(mask.all()) else mask

    def kwargs(self, new: int) -> dict[str, Any]:
        """For a forward over the last `new` positions."""
        if self.mask is None:
            return {}
        return {"attention_mask": self.mask, "position_ids": pair_positions(self.mask)[:, -new:]}

    def extend(self) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    def select(self, rows: Tensor) -> None:
        if self.mask is not None:
            self.mask = self.mask[rows]


class TokenReader:
    """Regular decoding: one token a step. `model` is any Hugging Face causal LM."""

    width = 1
    """Ids that a step reads."""

    def __init__(self, model: Any) -> None:
        self.backbone = model.get_decoder()
        self.head = model.get_output_embeddings()
        self.cache = make_cache(self.backbone.config)
        self.pad = 0  # masked

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:  # -> [B, H]
        ids, mask = left_pad(prompts, self.pad, self.head.weight.device)
        self.positions = _Positions(mask)
        return self._forward(ids)

    def step(self, ids: Tensor) -> Tensor:  # [B, 1] -> [B, H]
        self.positions.extend()
        return self._forward(ids)

    def _forward(self, ids: Tensor) -> Tensor:
        out = self.backbone(
            input_ids=ids, past_key_values=self.cache, use_cache=True, **self.positions.kwargs(ids.shape[1])
        )
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def logits(self, hidden: Tensor) -> Tensor:  # [B, H] -> [B, V]
        out: Tensor = self.head(hidden)
        return out

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        self.positions.select(rows)
        self.cache.reorder_cache(rows)

    def kv_bytes(self) -> int:
        return kv_bytes(self.cache)


class PairReader:
    """PIPO: one pair a step. The MTP layer's cache holds an entry for every pair read, the prompt's included.

    `draft` may be left out for a whole run only: then no cache of the MTP layer exists.
    """

    width = 2

    def __init__(self, model: Any) -> None:
        self.model = model
        self.pad: int = model.config.pad_token_id
        self.cache = make_cache(model.backbone.config)
        self.mtp_cache = make_cache(model.mtp.config)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:  # -> [B, H]
        """Prompts are padded to whole pairs at their end, the batch at its left."""
        even = [pad_to_even(prompt, self.pad) for prompt in prompts]
        ids, mask = left_pad(even, self.pad, self.model.device)
        self.positions = _Positions(pair_mask(mask))
        hidden = self._forward(ids)
        self.unread = (hidden, ids[:, 2::2])
        return hidden[:, -1]

    def step(self, ids: Tensor) -> Tensor:  # [B, 2] -> [B, H]
        self.positions.extend()
        hidden = self._forward(ids)
        self.unread = (hidden, ids[:, 2:])
        return hidden[:, -1]

    def _forward(self, ids: Tensor) -> Tensor:  # [B, 2n] -> [B, n, H]
        latents = self.model.compress(ids)
        hidden: Tensor = self.model.backbone(
            inputs_embeds=latents,
            past_key_values=self.cache,
            use_cache=True,
            **self.positions.kwargs(latents.shape[1]),
        ).last_hidden_state
        return hidden

    def draft(self, token1: Tensor) -> tuple[Tensor, Tensor]:  # [B] -> MTP states [B, H], confidence [B]
        """Run the MTP head over the pairs that the last forward read; `token1` follows the last of them."""
        hidden, known = self.unread
        first = torch.cat([known, token1[:, None]], dim=1)
        states = self.model.mtp(
            hidden,
            self.model.embed(first),
            past_key_values=self.mtp_cache,
            use_cache=True,
            **self.positions.kwargs(hidden.shape[1]),
        )
        return states[:, -1], self.model.confidence(hidden[:, -1], states[:, -1])

    def logits(self, hidden: Tensor) -> Tensor:  # [B, H] -> [B, V]
        """PAD is never sampled."""
        out: Tensor = self.model.lm_head(hidden)
        out[:, self.pad] = float("-inf")
        return out

    @cached_property
    def shortlist(self) -> Shortlist | None:
        """Copied with the first draft."""
        return Shortlist.of(self.model)

    def draft_logits(self, states: Tensor) -> Tensor:  # [B, H] -> [B, V]
        """The same for MTP states; a shortlist holds no PAD."""
        return self.logits(states) if self.shortlist is None else self.shortlist.logits(states)

    def select(self, rows: Tensor) -> None:
        self.positions.select(rows)
        self.cache.reorder_cache(rows)
        if self.mtp_cache.get_seq_length():
            self.mtp_cache.reorder_cache(rows)

    def kv_bytes(self) -> int:
        return kv_bytes(self.cache) + kv_bytes(self.mtp_cache)
