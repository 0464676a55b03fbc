"""PipoForCausalLM: compressor, unchanged backbone, MTP head and confidence head (paper fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from pipo.errors import UsageError
from pipo.model.compressor import Compressor
from pipo.model.confidence import ConfidenceHead, draw_drafts, token_log_probs
from pipo.model.config import PipoConfig
from pipo.model.loading import check_loading
from pipo.model.losses import LossFn, chunked_head_loss, confidence_bce, cross_entropy
from pipo.model.mtp import head_of, norm_like
from pipo.model.packed import packed_inputs
from pipo.model.shortlist import check_ids, first_ids
from pipo.pairing import (
    IGNORE,
    check_even,
    packed_pair_positions,
    pair_mask,
    pair_positions,
    token1_targets,
    token2_targets,
)


@dataclass
class PipoOutput(ModelOutput):
    """Losses are means over valid targets, None without labels; logits are None unless asked for."""

    loss: Tensor | None = None
    backbone_loss: Tensor | None = None
    mtp_loss: Tensor | None = None
    confidence_loss: Tensor | None = None
    logits: Tensor | None = None  # [B, L, V]
    mtp_logits: Tensor | None = None  # [B, L-1, V]
    confidence_logits: Tensor | None = None  # [B, L-1]
    drafts: Tensor | None = None  # [B, L-1], what the confidence head judged; None where it sees the states alone
    latents: Tensor | None = None  # [B, L, H]
    backbone_hidden_states: Tensor | None = None  # [B, L, H]
    mtp_hidden_states: Tensor | None = None  # [B, L-1, H]
    metrics: dict[str, Tensor] | None = None  # name -> [2]: sum, number


class PipoForCausalLM(PreTrainedModel, GenerationMixin):
    """Reads and writes two tokens a step. See `docs/architecture.md`."""

    config: PipoConfig
    config_class = PipoConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True  # no assisted decoding, no rollback
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: PipoConfig) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise UsageError("backbone_config", "is missing", "convert a model with PipoForCausalLM.from_base")
        self.backbone = AutoModel.from_config(config.backbone_config)
        size, norm = config.hidden_size, norm_like(self.backbone)
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        self.compressor = Compressor(size, config.compressor, config.compressor_residual)
        self.mtp = head_of(self.backbone)
        self.confidence_head = ConfidenceHead(size, norm(2 * size), config.confidence_inputs)
        self.register_buffer("draft_ids", first_ids(config.draft_vocab_size, config.vocab_size, config.pad_token_id))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def embed(self, ids: Tensor) -> Tensor:  # [...] -> [..., H]
        out: Tensor = self.get_input_embeddings()(ids)
        return out

    def compress(self, ids: Tensor) -> Tensor:  # [B, 2L] -> [B, L, H]
        """Pairs of ids -> latents."""
        out: Tensor = self.compressor(self.embed(ids))
        return out

    @property
    def judges_drafts(self) -> bool:
        """Whether the confidence head sees the drafted token."""
        return self.config.confidence_inputs == "draft"

    def confidence_logits(
        self,
        backbone_hidden: Tensor,  # [..., H]
        mtp_hidden: Tensor,  # [..., H]
        drafts: Tensor | None = None,  # [...] drafted tokens; not read where the head sees the states alone
    ) -> Tensor:  # [...]
        """What the confidence head says of the drafts, before the sigmoid."""
        if not self.judges_drafts:
            return self.confidence_head(backbone_hidden, mtp_hidden)
        if drafts is None:
            raise UsageError("drafts", "this model's confidence head sees the drafted token", "pass the drafts")
        hidden, tokens = mtp_hidden.flatten(0, -2), drafts.flatten()
        log_probs = token_log_probs(hidden, self.lm_head.weight, int(self.config.pad_token_id or 0), tokens)
        return self.confidence_head(backbone_hidden, mtp_hidden, self.embed(drafts), log_probs.view(drafts.shape))

    def confidence(self, backbone_hidden: Tensor, mtp_hidden: Tensor, drafts: Tensor | None = None) -> Tensor:
        """Probability that the draft is kept rightly, in float32; as `confidence_logits`."""
        return torch.sigmoid(self.confidence_logits(backbone_hidden, mtp_hidden, drafts).float())

    def set_shortlist(self, ids: Sequence[int] | Tensor | None) -> None:
        """Choose drafts from these tokens alone; None: from all. Raises `UsageError`. See `pipo.model.shortlist`."""
        if ids is not None:
            ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)
            check_ids(ids, self.config.vocab_size, self.config.pad_token_id)
        self.draft_ids = ids
        self.config.draft_vocab_size = None if ids is None else len(ids)

    def forward(
        self,
        input_ids: Tensor,  # [B, T], T even
        attention_mask: Tensor | None = None,  # [B, T]
        labels: Tensor | None = None,  # [B, T], not shifted, IGNORE where no target
        position_ids: Tensor | None = None,  # [1, T], of a packed row: each example's from 0
        return_logits: bool = False,
        num_items_in_batch: Tensor | None = None,  # [2] targets of backbone and MTP head in the optimizer step
        teacher: Any = None,  # pipo.training.teacher.TeacherStates
        drafts: Tensor | None = None,  # [B, L-1], what was drafted, IGNORE where nothing was
        draft_noise: Tensor | None = None,  # [B, L-1] uniform in [0, 1)
        **_: Any,
    ) -> PipoOutput:
        """Teacher-forced pass over whole pairs (paper sec. 3.2). Losses divide by `num_items_in_batch` where given.

        A packed row (`pipo.data.packing`) holds several examples of whole pairs. What its labels at an example's first
        pair are is not looked at: the packer makes them no targets.

        A confidence head that sees the drafted token judges `drafts`. Without them it judges the second tokens that
        were read, and with labels tokens drawn from the MTP head by `draft_noise` (default: torch's generator): a
        label is no draft, and a head that saw it would learn that every draft is right. Its target is then 1 where the
        draft is the label, the agreement with a teacher that is sure of the label; or what `teacher` would accept the
        draft with.

        A shortlist does not narrow the draft's logits or its loss. The listed logits are the same numbers either way,
        every target keeps its gradient, and the list can be chosen, changed or dropped after training.
        """
        check_even(input_ids.shape[1])
        latents = self.compress(input_ids)
        hidden = self.backbone(
            inputs_embeds=latents, use_cache=False, **_places(self.backbone, attention_mask, position_ids)
        ).last_hidden_state
        places = _places(self.mtp.decoder, attention_mask, position_ids, last=-1)
        mtp_hidden = self.mtp(hidden[:, :-1], self.embed(token1_targets(input_ids)), use_cache=False, **places)
        if self.judges_drafts:
            drafts = self._drafts(input_ids, mtp_hidden, drafts, draft_noise, drawn=labels is not None)
        else:
            drafts = None
        confidence_logits = self.confidence_logits(hidden[:, :-1], mtp_hidden, drafts)
        out = PipoOutput(latents=latents, backbone_hidden_states=hidden, mtp_hidden_states=mtp_hidden, drafts=drafts)
        if return_logits:
            out.logits, out.mtp_logits = self.lm_head(hidden), self.lm_head(mtp_hidden)
            out.confidence_logits = confidence_logits
        if labels is not None:
            self._add_losses(out, confidence_logits, labels, num_items_in_batch, teacher)
        return out

    def _drafts(
        self,
        input_ids: Tensor,  # [B, T]
        mtp_hidden: Tensor,  # [B, L-1, H]
        drafts: Tensor | None,  # [B, L-1]
        noise: Tensor | None,  # [B, L-1]
        drawn: bool,
    ) -> Tensor:  # [B, L-1]
        """The tokens that the confidence head judges; see `forward`."""
        read = token2_targets(input_ids)
        if drafts is not None:
            return torch.where(drafts == IGNORE, read, drafts)
        if not drawn:
            return read
        noise = torch.rand(read.shape, device=read.device) if noise is None else noise
        pad = int(self.config.pad_token_id or 0)
        return draw_drafts(mtp_hidden.flatten(0, 1), self.lm_head.weight, pad, noise.flatten()).view(read.shape)

    def _add_losses(
        self, out: PipoOutput, confidence_logits: Tensor, labels: Tensor, counts: Tensor | None, teacher: Any
    ) -> None:
        assert out.backbone_hidden_states is not None and out.mtp_hidden_states is not None
        targets1, targets2 = token1_targets(labels), token2_targets(labels)
        valid1, valid2 = targets1 != IGNORE, targets2 != IGNORE
        own = torch.stack([valid1.sum(), valid2.sum()])
        count1, count2 = (own if counts is None else counts).clamp(min=1)

        def head(hidden: Tensor, targets: Tensor, valid: Tensor, predictor: int) -> tuple[Tensor, Tensor]:
            fn: LossFn = cross_entropy
            extras = [targets[valid]]
            if teacher is not None:
                fn = teacher.loss
                extras.append(teacher.predicting(predictor)[valid])
                if predictor == 2 and out.drafts is not None:
                    extras.append(out.drafts[valid])
            return chunked_head_loss(fn, hidden[valid], self.lm_head.weight, extras)

        nll1, _ = head(out.backbone_hidden_states[:, :-1], targets1, valid1, 1)
        nll2, gold = head(out.mtp_hidden_states, targets2, valid2, 2)
        if out.drafts is not None and teacher is None:
            gold = (out.drafts == targets2)[valid2].float()
        logits = confidence_logits[valid2]
        bce = confidence_bce(logits, gold)
        out.backbone_loss, out.mtp_loss, out.confidence_loss = nll1 / count1, nll2 / count2, bce / count2
        out.loss = out.backbone_loss + out.mtp_loss + out.confidence_loss
        confidence = torch.sigmoid(logits.detach().float())
        sums = {
            "backbone_loss": (nll1, own[0]),
            "mtp_loss": (nll2, own[1]),
            "confidence_loss": (bce, own[1]),
            "confidence_mean": (confidence.sum(), own[1]),
            "confidence_target_mean": (gold.sum(), own[1]),
        }
        out.metrics = {name: torch.stack([total.detach().float(), n.float()]) for name, (total, n) in sums.items()}

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Decode in pairs, with transformers' generation options. See `pipo.decoding.generate`."""
        from pipo.decoding.generate import generate

        return generate(self, inputs, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers', but the confidence threshold can be read back.

        Of a generation config made from a model's config, transformers reads its own fields only.
        """
        self.generation_config._from_model_config = False
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_base(cls, base: Any, compressor: str = "mlp", **kwargs: Any) -> PipoForCausalLM:
        """Convert a Hugging Face causal LM (folder, hub id, GGUF file or loaded model). See `convert.from_base`."""
        from pipo.convert.from_base import from_base

        return from_base(base, compressor, **kwargs)

    @classmethod
    def from_published(cls, path: str | Path, base: str | Path | None = None) -> PipoForCausalLM:
        """Load the authors' layout: a merged folder, or an adapter folder with its base. See `convert.published`."""
        from pipo.convert.published import load_published

        return load_published(Path(path), None if base is None else Path(base))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but a folder with missing, unknown or misshapen tensors is refused with their names."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_loading(str(pretrained_model_name_or_path), info, "save the model again")
        if model.draft_ids is not None and not model.draft_ids.is_meta:
            check_ids(model.draft_ids, model.config.vocab_size, model.config.pad_token_id)
        return (model, info) if wants_info else model


def _places(
    decoder: Any, attention_mask: Tensor | None, position_ids: Tensor | None, last: int | None = None
) -> dict[str, Any]:
    """Masks and positions of the pairs up to `last`, as `decoder` takes them; nothing where all rows are whole."""
    if position_ids is not None:
        if attention_mask is not None:
            raise UsageError("attention_mask", "is given with a packed row's position_ids", "leave one out")
        return packed_inputs(decoder, packed_pair_positions(position_ids)[:, :last])
    if attention_mask is None or attention_mask.all():
        return {}
    mask = pair_mask(attention_mask)
    return {"attention_mask": mask[:, :last], "position_ids": pair_positions(mask)[:, :last]}
