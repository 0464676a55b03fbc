"""GGUF files: what their tensors say beside the weights."""

import math

import pytest
import tiny
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM

from pipo.convert.base import load_base
from pipo.convert.gguf_rope import llama3_divisors
from pipo.errors import UsageError

THETA, HEAD = 500_000.0, 16
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"


def write(file, model, divisors=None, without=()):
    """The model as llama.cpp's converter writes it; queries and keys are permuted there."""
    config = model.config
    out = GGUFWriter(str(file), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(THETA)
    out.add_rope_dimension_count(HEAD)
    out.add_vocab_size(config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name in without:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        kind = name.split(".")[-2]
        if kind in heads:
            tensor = tensor.view(heads[kind], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        out.add_tensor(gguf_name(name), tensor.contiguous().numpy())
    if divisors is not None:
        out.add_tensor("rope_freqs.weight", divisors.float().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return str(file)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": THETA, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = LlamaConfig(
        **tiny.config("llama").to_dict()
        | {"rope_parameters": rope, "head_dim": HEAD, "tie_word_embeddings": False, "max_position_embeddings": 131072}
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_the_scaling_of_llama_3_is_kept(model, tmp_path):
    """Its frequencies are divided as transformers divides them."""
    plain = THETA ** -(torch.arange(HEAD // 2) * 2 / HEAD)
    divisors = llama3_divisors(HEAD // 2, THETA, 8.0)
    torch.testing.assert_close(plain / divisors, model.model.rotary_emb.inv_freq)
    back = load_base(write(tmp_path / "model.gguf", model, divisors))
    assert back.config.rope_parameters["rope_type"] == "llama3" and back.config.rope_parameters["factor"] == 8.0
    ids = torch.randint(3, tiny.VOCAB, (1, 40))
    places = torch.arange(40)[None] * 1000  # far apart, where scaling matters
    torch.testing.assert_close(
        back(ids, position_ids=places).logits, model(ids, position_ids=places).logits, atol=1e-4, rtol=1e-3
    )


def test_another_scaling_is_refused(model, tmp_path):
    divisors = llama3_divisors(HEAD // 2, THETA, 8.0) * math.pi
    with pytest.raises(UsageError, match=r"rotary scaling \(rope_freqs\.weight\) is not known"):
        load_base(write(tmp_path / "model.gguf", model, divisors))


def test_a_file_without_scaling_has_none(model, tmp_path):
    assert load_base(write(tmp_path / "model.gguf", model)).config.rope_parameters["rope_type"] == "default"


def test_a_file_that_lacks_a_tensor_is_refused_by_its_name(model, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UsageError, match=f"missing tensors {name}"):
        load_base(write(tmp_path / "model.gguf", model, without=(name,)))
