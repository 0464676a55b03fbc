"""Tiny random models and a tokenizer, made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3_5TextConfig,
    Qwen3Config,
)

FAMILIES = ("llama", "qwen3", "qwen3_5")
VOCAB = 320
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config(family: str, **changes: Any) -> Any:
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family != "qwen3",
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "llama":
        return LlamaConfig(**common | changes)
    if family == "qwen3":
        return Qwen3Config(**common | {"head_dim": 16} | changes)
    linear = {
        "num_hidden_layers": 4,
        "head_dim": 32,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    return Qwen3_5TextConfig(**common | linear | changes)


def base(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random causal LM whose greedy choices are not all the same token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(family, **changes)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15)
    return model


def tokenizer() -> Any:
    """Byte-level BPE over a few words; 0 starts a turn, 1 ends it, 2 pads."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["user assistant system The answer is what how many and so on"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def byte_fallback_tokenizer() -> Any:
    """As SentencePiece's: words begin with a space, characters that are no token are `<0xE2>` and the like."""
    words = "▁the ▁so ▁ a b é 日 ▁日本".split()
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    raw = Tokenizer(models.Unigram([(token, -float(len(token))) for token in tokens], unk_id=0, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def prompts(lengths: Iterable[int]) -> list[list[int]]:
    """Ordinary tokens, the same in every test."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=draw).tolist() for n in lengths]


def pipo(family: str, **changes: Any) -> Any:
    """A converted tiny model; its confidence head is scaled so that confidences spread over (0, 1)."""
    from pipo.convert.from_base import from_base

    model = from_base(base(family), tokenizer=tokenizer(), **changes)
    with torch.no_grad():
        model.confidence_head.fc1.weight.normal_(0, 0.2)
        model.confidence_head.fc2.weight.normal_(0, 1.0)
        if model.confidence_head.draft is not None:
            model.confidence_head.draft.weight.normal_(0, 0.1)
    return model


def drafted(family: str) -> Any:
    """A base whose layers say little beside the embeddings, so that its grown MTP head is right about half the time."""
    from pipo.model.mtp_base import DraftedBase, grown_mtp

    model = base(family, tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and parameter.dim() > 1:
                parameter.mul_(0.2)
    return DraftedBase(model, grown_mtp(model))
