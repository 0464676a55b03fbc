"""How a step reads: whole pairs (PIPO) or single tokens (regular decoding), with their caches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipo.decoding.cache import drop_left, join, kv_bytes, make_cache
from pipo.model.shortlist import Shortlist
from pipo.pairing import pad_to_even, pair_mask, pair_positions


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:  # [B, T], mask [B, T]
    """Rows of ids to one batch, padded at the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device)[None] >= width - lengths[:, None]).long()


def position_limit(model: Any) -> int | None:
    """Positions that the model has: pairs of a PIPO model, tokens of any other. None where it does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


class _Positions:
    """Mask and rotary positions of a left-padded batch; both None (the model's own default) where nothing is padded."""

    mask: Tensor | None

    def __init__(self, mask: Tensor) -> None:  # [B, L]
        self._set(mask)

    def kwargs(self, new: int) -> dict[str, Any]:
        """For a forward over the last `new` positions."""
        if self.mask is None:
            return {}
        return {"attention_mask": self.mask, "position_ids": pair_positions(self.mask)[:, -new:]}

    def extend(self, new: int = 1) -> None:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), new)], dim=1)

    def hide_last(self, rows: Tensor, length: int) -> None:  # bool [B]
        """For these rows the last of `length` positions does not count: nothing attends to it."""
        if self.mask is None:
            self.mask = torch.ones(len(rows), length, dtype=torch.long, device=rows.device)
        self.mask[:, -1] *= ~rows

    def cut_last(self) -> None:
        if self.mask is not None:
            self.mask = self.mask[:, :-1]

    def select(self, rows: Tensor) -> None:
        if self.mask is not None:
            self.mask = self.mask[rows]

    def join(self, other: _Positions, lengths: tuple[int, int], rows: tuple[int, int], device: Any) -> None:
        """Append the other's rows, the shorter of the two padded at its left; `lengths` and `rows` are of both."""
        masks = [
            torch.ones(shape, dtype=torch.long, device=device) if positions.mask is None else positions.mask
            for positions, shape in zip((self, other), zip(rows, lengths, strict=True), strict=True)
        ]
        self._set(torch.cat([F.pad(mask, (max(lengths) - mask.shape[1], 0)) for mask in masks]))

    def _set(self, mask: Tensor) -> None:
        self.mask = None if bool(mask.all()) else mask

    def drop_unused(self) -> int:
        """Cut the positions at the left that are real in no row; returns how many."""
        if self.mask is None:
            return 0
        unused = int(self.mask.amax(0).argmax())
        self._set(self.mask[:, unused:])
        return unused


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

    def join(self, other: TokenReader, rows: tuple[int, int]) -> None:
        """Append the rows of another reader of the same model; `rows` says how many both have."""
        lengths = self.cache.get_seq_length(), other.cache.get_seq_length()
        self.positions.join(other.positions, lengths, rows, self.head.weight.device)
        join(self.cache, other.cache)

    def drop_unused(self) -> None:
        """Forget what lies at the left of the longest row."""
        if unused := self.positions.drop_unused():
            drop_left(self.cache, unused)

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

    def draft(self, token1: Tensor) -> Tensor:  # [B] -> MTP states [B, H]
        """Run the MTP head over the pairs that the last forward read; `token1` follows the last of them."""
        hidden, known = self.unread
        return self._mtp(hidden, torch.cat([known, token1[:, None]], dim=1))[:, -1]

    def _mtp(self, hidden: Tensor, first: Tensor) -> Tensor:  # [B, n, H], ids [B, n] -> [B, n, H]
        states: Tensor = self.model.mtp(
            hidden,
            self.model.embed(first),
            past_key_values=self.mtp_cache,
            use_cache=True,
            **self.positions.kwargs(hidden.shape[1]),
        )
        return states

    def confidence(self, rows: Tensor, states: Tensor, drafts: Tensor) -> Tensor:  # [R], [R, H], [R] -> [R]
        """How far the drafts of these rows are to be trusted; `states` are the MTP head's, of these rows."""
        hidden, _ = self.unread
        out: Tensor = self.model.confidence(hidden[rows, -1], states, drafts)
        return out

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

    def join(self, other: PairReader, rows: tuple[int, int]) -> None:
        """Append the rows of another reader of the same model, both after a draft; `rows`: how many both have."""
        lengths = self.cache.get_seq_length(), other.cache.get_seq_length()
        self.positions.join(other.positions, lengths, rows, self.model.device)
        join(self.cache, other.cache)
        join(self.mtp_cache, other.mtp_cache)

    def drop_unused(self) -> None:
        if unused := self.positions.drop_unused():
            drop_left(self.cache, unused)
            drop_left(self.mtp_cache, unused)

    def kv_bytes(self) -> int:
        return kv_bytes(self.cache) + kv_bytes(self.mtp_cache)
