"""An uncompressed base with an MTP head: what the methods `mtp` and `speculative` decode with, and how it is trained.

PIPO without pair-in: every token has a backbone position of its own. The head reads (e(t[p+1]), h[p]) and predicts
t[p+2], so a step of two tokens drafts as PIPO's does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipo.errors import UsageError, first_line
from pipo.model.families import MTP_FILE, has_trained_mtp, native_name, text_config, trained_mtp
from pipo.model.losses import LossOutput, chunked_head_loss, cross_entropy
from pipo.model.mtp import MtpHead, head_of
from pipo.model.packed import packed_inputs
from pipo.pairing import IGNORE

METHODS = ("mtp", "speculative")
"""How it decodes: every draft kept, or verified so that nothing is lost."""

RECIPE = "train one with `pipo sft` and `objective: mtp` (runs/smollm2_mtp.yaml), or name a base that has one"


def draft_targets(x: Tensor) -> Tensor:  # [B, T] -> [B, T-2]
    """What the MTP state of position p predicts, at token granularity."""
    return x[:, 2:]


class DraftedBase(nn.Module):
    """`base` is any Hugging Face causal LM. It is no submodule: it is neither trained nor part of checkpoints."""

    def __init__(self, base: Any, mtp: MtpHead) -> None:
        super().__init__()
        self.mtp = mtp
        self._base = (base,)

    @property
    def base(self) -> Any:
        return self._base[0]

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def device(self) -> torch.device:
        device: torch.device = self.base.device
        return device

    @property
    def backbone(self) -> Any:
        return self.base.get_decoder()

    @property
    def lm_head(self) -> Any:
        return self.base.get_output_embeddings()

    def embed(self, ids: Tensor) -> Tensor:  # [...] -> [..., H]
        out: Tensor = self.base.get_input_embeddings()(ids)
        return out

    def compress(self, ids: Tensor) -> Tensor:  # [B, n] -> [B, n, H]
        """Nothing is compressed."""
        return self.embed(ids)

    def confidence(self, hidden: Tensor, *_: Any) -> Tensor:  # [B, H] -> [B]
        """1: without a confidence head every draft counts as sure."""
        return torch.ones(len(hidden), device=hidden.device)

    def mtp_states(
        self,
        input_ids: Tensor,  # [B, T]
        attention_mask: Tensor | None = None,  # [B, T]
        position_ids: Tensor | None = None,  # [1, T], of a packed row: each example's from 0
    ) -> Tensor:  # [B, T-2, H]
        """MTP states of a teacher-forced pass. Gradients stop at the base's states."""

        def read(decoder: Any) -> dict[str, Any]:
            places = (
                {"attention_mask": attention_mask} if position_ids is None else packed_inputs(decoder, position_ids)
            )
            return {"use_cache": False, **places}

        with torch.no_grad():
            hidden = self.backbone(input_ids=input_ids, **read(self.backbone)).last_hidden_state
            known = self.embed(input_ids.roll(-1, dims=1))  # what the last state reads is wrong, and never used
        out: Tensor = self.mtp(hidden, known, **read(self.mtp.decoder))
        return out[:, :-2]

    def forward(
        self,
        input_ids: Tensor,  # [B, T]
        labels: Tensor,  # [B, T], not shifted, IGNORE where no target
        attention_mask: Tensor | None = None,  # [B, T]
        position_ids: Tensor | None = None,  # [1, T], see `mtp_states`
        num_items_in_batch: Tensor | None = None,  # [1] targets in the optimizer step
        **_: Any,
    ) -> LossOutput:
        """The loss of the drafts, over `num_items_in_batch` where given."""
        targets = draft_targets(labels)
        valid = targets != IGNORE
        states = self.mtp_states(input_ids, attention_mask, position_ids)
        total, _probability = chunked_head_loss(cross_entropy, states[valid], self.lm_head.weight, [targets[valid]])
        count = valid.sum() if num_items_in_batch is None else num_items_in_batch[0]
        return LossOutput(
            loss=total / count.clamp(min=1),
            metrics={"mtp_loss": torch.stack([total.detach(), valid.sum().to(total.dtype)])},
        )


def check_mtp(method: str, name: str, source: str, config: Any) -> None:
    """Raises `UsageError` where the base that the user calls `name`, at `source`, has no trained MTP head."""
    if config is None or not has_trained_mtp(source, text_config(config)):
        raise UsageError(method, f"{name} has no trained MTP head", RECIPE)


def load_mtp(base: Any, source: str) -> MtpHead:
    """The trained MTP head of the base at `source` (folder or hub id). Raises `UsageError` where it has none."""
    tensors = trained_mtp(source, text_config(base.config))
    if tensors is None:
        raise UsageError("mtp", f"{source} has no trained MTP head", RECIPE)
    head = new_mtp(base)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        problem = f"the MTP head does not fit the base ({first_line(error)})"
        raise UsageError(source, problem, RECIPE) from None
    return head


def grown_mtp(base: Any) -> MtpHead:
    """A new head that starts from the base's last layer."""
    head = new_mtp(base)
    head.grow(base.get_decoder())
    return head


def new_mtp(base: Any) -> MtpHead:
    """A head of the base's shape, precision and device."""
    backbone = base.get_decoder()
    head: MtpHead = head_of(backbone).to(device=base.device, dtype=base.dtype).eval()
    return head


def save_mtp(head: MtpHead, folder: Path) -> None:
    """Write MTP_FILE beside a base, whole or not at all."""
    partial = folder / f".{MTP_FILE}.partial"
    tensors = {native_name(name): tensor.contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / MTP_FILE)
