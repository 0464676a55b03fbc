"""What differs from one family to the next."""

import tiny

from pipo.model import families


def test_slow_recurrent_layers_are_said_on_a_gpu_alone(monkeypatch, caplog):
    recurrent, plain = tiny.base("qwen3_5"), tiny.base("llama")
    monkeypatch.setattr(families, "find_spec", lambda name: None)
    families.warn_slow_layers(recurrent, "cpu")
    families.warn_slow_layers(plain, "cuda")
    assert not caplog.text
    families.warn_slow_layers(recurrent, "cuda:1")
    assert "flash-linear-attention and causal-conv1d not installed" in caplog.text and "extra `qwen`" in caplog.text
    caplog.clear()
    monkeypatch.setattr(families, "find_spec", lambda name: object())
    families.warn_slow_layers(recurrent, "cuda")
    assert not caplog.text
