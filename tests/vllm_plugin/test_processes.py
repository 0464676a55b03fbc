"""Engines in processes of their own: a hybrid backbone, compiled, tensor-parallel and data-parallel ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SRC
from served import BLOCK, CHUNK, LENGTH, draw, reference, save_tiny, tokens

from pipo.decoding.engine import LocalEngine
from pipo.pairing import pad_to_even

HERE = Path(__file__).parent
PROMPTS = draw((1, 2, 9, 64, 65, 130, 301, 384), seed=30)
THRESHOLDS = [0.0, None, 2.0, 0.3] * 2
SETTINGS = {
    "dtype": "float32",
    "max_model_len": LENGTH,
    "max_num_batched_tokens": CHUNK,
    "block_size": BLOCK,
    "kv_cache_memory_bytes": 16 << 20,
}


def start(folder, out, more_path=(), fields=None, prompts=PROMPTS, **settings):
    """Tokens of two rounds, and cached tokens of both."""
    program = [str(HERE / "serve_folder.py"), folder, str(out)]
    facts = (SETTINGS | settings, prompts, fields or {"threshold": THRESHOLDS, "ignore_eos": True})
    path = os.pathsep.join([*more_path, str(SRC), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": path}
    command = [sys.executable, *program, *map(json.dumps, facts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def expected(local):
    return [tokens(reference(local, [p], threshold=t))[0] for p, t in zip(PROMPTS, THRESHOLDS, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"tensor_parallel_size": 2, "enforce_eager": True},
        {"enforce_eager": False},
    ],
    ids=["two tensor-parallel ranks", "compiled"],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_same_tokens(tmp_path, family, settings):
    folder = save_tiny(tmp_path / "model", family, head_dim=32)
    got = start(folder, tmp_path / "out", **settings)
    assert got["tokens"] == [expected(LocalEngine.load(folder))] * 2
    assert sum(got["cached"][1]) >= 10 * BLOCK


@pytest.mark.slow
def test_two_data_parallel_replicas(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama", head_dim=32)
    got = start(folder, tmp_path / "out", data_parallel_size=2, enforce_eager=True)
    assert got["tokens"] == [expected(LocalEngine.load(folder))] * 2


@torch.no_grad()
def test_a_hybrid_backbone_agrees_at_the_level_of_bfloat16(tmp_path):
    """Recurrent layers run in bfloat16 only on a CPU. Teacher-forced: vLLM's token is the float32 trainer's argmax, or
    within 0.3 of its logit, and most are the argmax; with chunked prefill and a cached prefix."""
    heads = {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "head_dim": 64}
    folder = save_tiny(tmp_path / "model", "qwen3_5", **heads)
    settings = {"dtype": "bfloat16", "enforce_eager": True, "enable_prefix_caching": True}
    prompts = [*PROMPTS, *draw((800, 801), seed=31)]  # states are cached every 384 tokens
    fields = {"threshold": 0.0, "ignore_eos": True}
    got = start(folder, tmp_path / "out", [str(HERE / "stand_ins")], fields, prompts, **settings)
    local = LocalEngine.load(folder)
    model = local.model.bfloat16().float()
    pad, same, total = model.config.pad_token_id, 0, 0
    for each in got["tokens"]:
        for prompt, answer in zip(prompts, each, strict=True):
            even = pad_to_even(prompt, pad)
            out = model(input_ids=torch.tensor([even + answer]), return_logits=True)
            start_pair = len(even) // 2 - 1
            logits = torch.stack([out.logits[0, start_pair:-1], out.mtp_logits[0, start_pair:]], dim=1).flatten(0, 1)
            logits[:, pad] = float("-inf")
            margin = logits.amax(-1) - logits[torch.arange(len(answer)), torch.tensor(answer)]
            assert margin.max() < 0.3
            same, total = same + int((margin == 0).sum()), total + len(answer)
    assert total == 2 * 24 * len(prompts) and same / total > 0.9
    assert got["cached"][1][-2:] == [768, 768]
