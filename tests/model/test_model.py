"""The model: conversion, saving, alignment of its losses, masks."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from pipo import PipoConfig, PipoForCausalLM
from pipo.convert.from_base import from_base
from pipo.errors import UsageError
from pipo.pairing import IGNORE

IDS = torch.randint(3, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return tiny.pipo(request.param)


def labels_with_holes():
    labels = IDS.clone()
    labels[:, :3] = IGNORE
    labels[1, 7:9] = IGNORE
    return labels


@torch.no_grad()
def test_shapes(model):
    out = model(input_ids=IDS, labels=IDS, return_logits=True)
    size = model.config.hidden_size
    assert out.latents.shape == out.backbone_hidden_states.shape == (2, 6, size)
    assert out.mtp_hidden_states.shape == (2, 5, size)
    assert (out.logits.shape, out.mtp_logits.shape) == ((2, 6, tiny.VOCAB), (2, 5, tiny.VOCAB))
    assert out.confidence_logits.shape == (2, 5)
    bare = model(input_ids=IDS)
    assert bare.loss is bare.backbone_loss is bare.logits is bare.confidence_logits is None


@torch.no_grad()
def test_losses_are_those_of_the_logits(model):
    """The definition, written out: backbone state i predicts token 2i+2, MTP state i token 2i+3."""
    labels = labels_with_holes()
    out = model(input_ids=IDS, labels=labels, return_logits=True)
    first = [(out.logits[b, i], labels[b, 2 * i + 2]) for b in range(2) for i in range(5)]
    second = [(b, i, labels[b, 2 * i + 3]) for b in range(2) for i in range(5) if labels[b, 2 * i + 3] != IGNORE]
    ce1 = torch.stack([F.cross_entropy(z, y) for z, y in first if y != IGNORE]).mean()
    ce2 = torch.stack([F.cross_entropy(out.mtp_logits[b, i], y) for b, i, y in second]).mean()
    gold = torch.stack([out.mtp_logits[b, i].softmax(-1)[y] for b, i, y in second])
    logits = torch.stack([out.confidence_logits[b, i] for b, i, _ in second])
    torch.testing.assert_close(out.backbone_loss, ce1)
    torch.testing.assert_close(out.mtp_loss, ce2)
    torch.testing.assert_close(out.confidence_loss, F.binary_cross_entropy_with_logits(logits, gold))
    torch.testing.assert_close(out.loss, out.backbone_loss + out.mtp_loss + out.confidence_loss)


def test_confidence_probes_and_does_not_steer(model):
    out = model(input_ids=IDS, labels=IDS)
    model.zero_grad()
    out.confidence_loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient and all(name.startswith("confidence_head.") for name in with_gradient)


def test_the_draft_loss_reaches_backbone_and_compressor(model):
    out = model(input_ids=IDS, labels=IDS)
    model.zero_grad()
    out.mtp_loss.backward()
    assert model.compressor.mlp[2].weight.grad.abs().sum() > 0
    assert model.backbone.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows(model, side):
    pad, short = model.config.pad_token_id, IDS[1:, :6]
    fill = torch.full((1, 6), pad)
    row = torch.cat([fill, short] if side == "left" else [short, fill], dim=1)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, : 6 if side == "left" else 12] = 0
    if side == "right":
        mask[1] = torch.tensor([1] * 6 + [0] * 6)
    out = model(input_ids=torch.cat([IDS[:1], row]), attention_mask=mask, return_logits=True)
    alone, whole = model(input_ids=short, return_logits=True), model(input_ids=IDS[:1], return_logits=True)
    at = slice(3, 6) if side == "left" else slice(0, 3)
    torch.testing.assert_close(out.logits[1, at], alone.logits[0], atol=1e-4, rtol=1e-4)
    at = slice(3, 5) if side == "left" else slice(0, 2)
    torch.testing.assert_close(out.mtp_logits[1, at], alone.mtp_logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.logits[0], whole.logits[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_save_and_load_through_the_auto_classes(model, tmp_path):
    model.generation_config.confidence_threshold = 0.25
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PipoConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is PipoForCausalLM and again.generation_config.confidence_threshold == 0.25
    assert type(again.config.backbone_config) is type(model.config.backbone_config)
    a, b = model(input_ids=IDS, return_logits=True), again(input_ids=IDS, return_logits=True)
    for name in ("logits", "mtp_logits", "confidence_logits"):  # not bit for bit: kernels depend on memory alignment
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
    tied = model.config.get_text_config().tie_word_embeddings
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_a_threshold_that_was_set_is_stored(tiny_llama, tmp_path):
    model = from_base(tiny_llama)
    model.generation_config.confidence_threshold = 0.8
    model.save_pretrained(tmp_path)
    assert PipoForCausalLM.from_pretrained(tmp_path).generation_config.confidence_threshold == 0.8


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_is_kept(dtype, tmp_path):
    model = tiny.pipo("llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    again = PipoForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in again.parameters()} == {getattr(torch, dtype)}


def damaged(model, tmp_path, change):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_checkpoint_with_missing_or_unknown_tensors_is_refused(model, tmp_path):
    folder = damaged(model, tmp_path / "a", lambda t: t.pop("mtp.fc.weight"))
    with pytest.raises(UsageError, match=r"missing tensors mtp\.fc\.weight"):
        PipoForCausalLM.from_pretrained(folder)
    folder = damaged(model, tmp_path / "b", lambda t: t.update({"compressor.extra": torch.zeros(1)}))
    with pytest.raises(UsageError, match=r"unexpected tensors compressor\.extra"):
        PipoForCausalLM.from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_backbone_is_unchanged_by_conversion(family):
    base = tiny.base(family)
    before = base(input_ids=IDS).logits
    pipo = from_base(base, tokenizer=tiny.tokenizer())
    hidden = pipo.backbone(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(pipo.lm_head(hidden), before)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_the_compressor_starts_at_the_sum(kind):
    model = tiny.pipo("llama", compressor=kind)
    embeddings = torch.randn(1, 6, 64)
    torch.testing.assert_close(model.compressor(embeddings), embeddings[:, 0::2] + embeddings[:, 1::2])
    assert not hasattr(model.compressor, "linear" if kind == "mlp" else "mlp")


def test_the_official_multimodal_wrapper_keeps_its_trained_mtp_head(tmp_path):
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    config = Qwen3_5Config(text_config=tiny.config("qwen3_5").to_dict(), vision_config=vision, tie_word_embeddings=True)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    native = tiny.pipo("qwen3_5").mtp
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in native.state_dict().items():
        tensors["mtp." + name.removeprefix("decoder.")] = tensor + 0.01
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pipo = from_base(str(tmp_path))
    assert pipo.config.backbone_config.model_type == "qwen3_5_text"
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(pipo.mtp.state_dict()[name], tensor + 0.01)
    assert not any("visual" in name for name, _ in pipo.named_parameters())


def test_an_unknown_family_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UsageError, match="gpt2"):
        from_base(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)), tokenizer=tiny.tokenizer())


def test_pad_is_not_the_end_of_a_turn():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    base = tiny.base("llama")
    rows = base.get_input_embeddings().weight.shape[0]
    pipo = from_base(base, tokenizer=tokenizer)  # <|pad|> is a special token that no template uses
    assert pipo.config.pad_token_id == 2 and rows == pipo.config.vocab_size
    assert pipo.generation_config.eos_token_id == 1


def test_pad_becomes_a_new_row_where_no_token_is_spare():
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template += "<|pad|>"
    rows = len(tokenizer)
    pipo = from_base(tiny.base("llama", vocab_size=rows), tokenizer=tokenizer)
    assert pipo.config.pad_token_id == rows and len(tokenizer) == rows + 1
    assert pipo.lm_head.weight.shape[0] == pipo.backbone.embed_tokens.weight.shape[0] == rows + 1


def test_an_odd_length_is_refused(model):
    with pytest.raises(UsageError, match="odd"):
        model(input_ids=IDS[:, :5])
