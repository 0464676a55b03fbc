"""Trained adapters as they lie in the package."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipo import shipped


@pytest.fixture
def adapter(tmp_path):
    """A folder with a matrix whose rows differ much in size, and a vector."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 40) * torch.logspace(-4, 1, 6)[:, None]
    matrix[3] = 0
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"a.lora_A.weight": matrix, "a.bias": torch.randn(9)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 6, "base_model_name_or_path": "/private/path"}))
    return folder


def test_a_packed_adapter_is_small_and_close_to_what_was_trained(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "ASSETS", tmp_path / "assets")
    monkeypatch.setenv("PIPO_HOME", str(tmp_path / "home"))
    shipped.pack(adapter, "demo-base")
    stored = load_file(tmp_path / "assets" / "demo-base" / "adapter_model.safetensors")
    assert stored["a.lora_A.weight"].dtype == torch.int8
    assert "private" not in (tmp_path / "assets" / "demo-base" / "adapter_config.json").read_text()
    folder = shipped.adapter_of("demo-base")
    given, back = (load_file(f / "adapter_model.safetensors") for f in (adapter, folder))
    assert given.keys() == back.keys()
    largest = given["a.lora_A.weight"].abs().amax(-1, keepdim=True)
    assert ((back["a.lora_A.weight"] - given["a.lora_A.weight"]).abs() <= largest / 254 * 1.001).all()
    assert (back["a.lora_A.weight"][3] == 0).all()
    assert torch.allclose(back["a.bias"].float(), given["a.bias"], rtol=1 / 128)


def test_any_other_adapter_is_its_own_folder(adapter):
    assert shipped.adapter_of(str(adapter)) == adapter
