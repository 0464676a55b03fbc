"""Graphs that a CPU can replay (`frozen_replay.py`): PIPO's settings leave none of them on, and why they must not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from served import LENGTH, draw, reference, tokens

PROMPTS = draw((1, 2, 9, 40, 65), seed=40)
"""A step that reads them has more tokens than any graph; one of five decodes fills up a graph's."""


def start(folder, graphs):
    command = [sys.executable, str(Path(__file__).parent / "frozen_replay.py"), folder, graphs, json.dumps(PROMPTS)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_shipped_settings_replay_nothing(folder, local):
    """Where vLLM's defaults have graphs."""
    got = start(folder, "shipped")
    assert got == {"mode": "NONE", "tokens": tokens(reference(local, PROMPTS)), "captures": 0, "replays": 0}


@pytest.mark.slow
def test_with_graphs_the_head_has_none_to_replay(folder):
    got = start(folder, "on")
    assert got["mode"] == "PIECEWISE" and got["captures"]
    assert "capturing detected at an inappropriate time" in got["error"]


@pytest.mark.slow
def test_with_graphs_the_backbone_reads_what_was_captured(folder, local):
    got = start(folder, "backbone")
    assert got["replays"] and got["tokens"] != tokens(reference(local, PROMPTS))


@pytest.mark.slow
def test_graphs_whose_inputs_are_copied_are_right(folder, local):
    """So the two tests above are of moving inputs and a head without graphs, and of nothing else."""
    got = start(folder, "copied")
    assert got["replays"] and got["tokens"] == tokens(reference(local, PROMPTS))


@pytest.mark.slow
def test_an_uncompressed_models_graphs_are_right(tmp_path):
    """The stand-in itself."""
    base = tiny.base("llama", max_position_embeddings=LENGTH, head_dim=32)
    base.generation_config.eos_token_id = None
    base.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    got = start(str(tmp_path), "shipped")
    assert got["mode"] == "PIECEWISE" and got["replays"]
    for prompt, answer in zip(PROMPTS, got["tokens"], strict=True):
        whole = base.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=len(answer), min_new_tokens=1)
        assert answer == whole[0, len(prompt) :].tolist()
