"""`pipo serve`: what it refuses before it listens."""

import socket
from importlib.util import find_spec

import pytest

LOCAL = ("--engine", "transformers", "--port", 0)


def test_a_port_in_use(refused, tiny_pipo):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("--port", "serve", tiny_pipo, "--engine", "transformers", "--port", port)
    assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("--host", ["--host", "203.0.113.1"]),
        ("--host", ["--host", "no such host"]),
        ("--threshold", ["--threshold=-1"]),
        ("--max-model-len", ["--max-model-len", "5000"]),
        ("--device", ["--device", "abacus"]),
        ("Invalid value for '--port'", ["--port", "70000"]),
        ("Invalid value for '--engine'", ["--engine", "sglang"]),
        ("Invalid value for '--max-num-seqs'", ["--max-num-seqs", "0"]),
        ("Invalid value for --tensor-parallel-size", ["--tensor-parallel-size", "2"]),
        ("Invalid value for VLLM-OPTIONS", ["--", "--enforce-eager"]),
    ],
)
def test_bad_options(refused, tiny_pipo, field, options):
    refused(field, "serve", tiny_pipo, *LOCAL, *options)


def test_models_that_cannot_be_served(refused, tiny_llama, tmp_path):
    refused("model", "serve", tmp_path, *LOCAL)
    refused("model", "serve", tmp_path / "none", *LOCAL)
    refused("--threshold", "serve", tiny_llama, *LOCAL, "--threshold", 0.5)


def test_missing_packages_are_named(refused, tiny_pipo, monkeypatch):
    hidden = {"fastapi"}
    monkeypatch.setattr("pipo_cli.serve.find_spec", lambda name: None if name in hidden else find_spec(name))
    assert "the extra serve" in refused("Invalid value for --engine", "serve", tiny_pipo, *LOCAL)
    hidden.add("vllm")
    assert "the extra vllm" in refused("Invalid value for --engine", "serve", tiny_pipo, "--engine", "vllm")
