"""Reading with an uncompressed base and its MTP head: as PIPO, but a position for every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pipo.decoding.cache import GrowingLayer, make_cache
from pipo.decoding.reader import PairReader, _Positions, left_pad
from pipo.errors import UsageError
from pipo.model.mtp_base import DraftedBase


class DraftedReader(PairReader):
    """Two tokens a step, both kept. Every token read has an entry in the base's cache and in the MTP layer's."""

    def __init__(self, model: DraftedBase) -> None:
        super().__init__(model)
        self.pad = 0  # masked

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:  # -> [B, H]
        ids, mask = left_pad(prompts, self.pad, self.model.device)
        self.positions = _Positions(mask)
        return self._read(ids)

    def step(self, ids: Tensor) -> Tensor:  # [B, 2] -> [B, H]
        self.positions.extend(2)
        return self._read(ids)

    def _read(self, ids: Tensor) -> Tensor:  # [B, n] -> [B, H]
        hidden = self._forward(ids)
        self.unread = (hidden, ids[:, 1:])
        return hidden[:, -1]

    def logits(self, hidden: Tensor) -> Tensor:  # [..., H] -> [..., V]
        out: Tensor = self.model.lm_head(hidden)
        return out


class VerifyingReader(DraftedReader):
    """Reads a token and its draft, which `settle` may take back: rows then go on from the first of the two."""

    def __init__(self, model: DraftedBase) -> None:
        super().__init__(model)
        check_rolls_back(model.backbone.config)

    @property
    def hidden(self) -> Tensor:  # [B, n, H]
        """The base's states at the positions that were read last."""
        return self.unread[0]

    def settle(self, tokens: Tensor, kept: Tensor) -> None:  # [B], bool [B]
        """`tokens` follow the first of the two positions: the draft where it was kept, another in its place elsewhere.

        A rejected draft's entry is cut off; where other rows of the batch keep theirs, it stays and is never attended.
        """
        hidden, _ = self.unread
        if not kept.any():
            self.cache.crop(-1)
            self.positions.cut_last()
            self.unread = (hidden[:, :1], tokens[:, None][:, :0])
            return
        if not kept.all():
            self.positions.hide_last(~kept, self.cache.get_seq_length())
        self.unread = (hidden, tokens[:, None])

    def draft_after(self, last: Tensor, kept: Tensor) -> Tensor:  # [B], bool [B] -> [B, H]
        """MTP states that draft what follows `last`, the last token of each row."""
        hidden, known = self.unread
        states = self._mtp(hidden, torch.cat([known, last[:, None]], dim=1))
        at = torch.where(kept, hidden.shape[1] - 1, 0)
        return states[torch.arange(len(states), device=states.device), at]


def check_rolls_back(config: PreTrainedConfig) -> None:
    """Raises `UsageError` for a backbone with states that a rejected draft cannot be taken out of."""
    kinds = {type(layer).__name__ for layer in make_cache(config).layers if not isinstance(layer, GrowingLayer)}
    if kinds:
        problem = (
            f"a rejected draft cannot be taken out of the {', '.join(sorted(kinds))} states of {config.model_type}"
        )
        raise UsageError("speculative", problem, "use regular or mtp")
