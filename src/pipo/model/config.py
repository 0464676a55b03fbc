"""The configuration of a PIPO model: the backbone's own config with what PIPO adds."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class PipoConfig(PreTrainedConfig):
    """`backbone_config` is the uncompressed model's text config; `pad_token_id` is the PAD of pairs and of batches.

    compressor: "mlp" or "linear" (paper appendix B).
    compressor_residual: weight of (a + b) beside the compressor's own branch; 0 is the authors' released form.
    confidence_inputs: what the confidence head sees: "states" (the paper's), or "draft": the drafted token too.
    draft_vocab_size: length of the shortlist that drafts are chosen from (`draft_ids` in the checkpoint); None is all.
    base_model, base_revision: what training started from, as a folder or hub id.
    """

    model_type = "pipo"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: Any = None  # a config, or its fields
    compressor: str = "mlp"
    compressor_residual: float = 0.0
    confidence_inputs: str = "states"
    pad_token_id: int | None = None
    draft_vocab_size: int | None = None
    base_model: str | None = None
    base_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            fields = dict(self.backbone_config)
            self.backbone_config = AutoConfig.for_model(fields.pop("model_type", "llama"), **fields)
        if self.backbone_config is not None:
            kwargs.setdefault("tie_word_embeddings", self.backbone_config.tie_word_embeddings)
        super().__post_init__(**kwargs)

    def get_text_config(self, *_: Any, **__: Any) -> PreTrainedConfig:
        """The config that caches and masks are made from."""
        return self if self.backbone_config is None else self.backbone_config

    @property
    def hidden_size(self) -> int:
        return int(self.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.get_text_config().vocab_size)
