"""Folders in and out: what a base may lack, what is kept of it, and saves that fail."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipo.convert.base import load_base, load_model
from pipo.convert.folders import convert
from pipo.convert.save import save_model
from pipo.errors import UsageError
from pipo.model.families import MTP_FILE
from pipo_cli.app import app

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def base(tiny_llama, tmp_path):
    """A copy that may be broken."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "missing": lambda tensors: tensors.pop(NAME),
    "misshapen": lambda tensors: tensors.update({NAME: torch.zeros(3, 3)}),
    "unexpected": lambda tensors: tensors.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(96, 64)}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_base_with_other_tensors_is_refused_by_their_names(what, base, tmp_path):
    rewrite(base, BROKEN[what])
    result = CliRunner().invoke(app, ["convert", str(base), str(tmp_path / "out")])
    assert result.exit_code == 2
    line = result.stderr.strip().splitlines()[-1]
    assert what in line and "up_proj" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", [2, 4])
def test_a_config_of_another_depth_is_refused(layers, base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(UsageError, match=r"model\.layers\."):
        load_base(str(base))


def test_an_index_without_a_shard_is_refused(base):
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = base / f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file, metadata={"format": "pt"})
    places = {name: f"model-{1 + index % 2:05}-of-00002.safetensors" for index, name in enumerate(names)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    load_base(str(base))
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match="model-00002-of-00002"):
        load_base(str(base))


def test_options_of_drawing_without_do_sample_are_taken_for_drawing(base, tmp_path):
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(config | {"temperature": 0.6, "top_p": 0.95}))
    convert(str(base), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["temperature"] == 0.6


def test_a_generation_config_that_cannot_be_saved_is_refused_before_anything_is_done(base, tmp_path):
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(config | {"early_stopping": True}))
    with pytest.raises(UsageError, match=r"generation_config\.json cannot be saved"):
        convert(str(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    model, tokenizer = tiny.base("llama"), tiny.tokenizer()
    save_model(model, tokenizer, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda _: 1 / 0)
    for folder in ("out", "new"):
        with pytest.raises(ZeroDivisionError):
            save_model(tiny.base("llama", seed=1), tokenizer, tmp_path / folder)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_conversion_makes_no_second_model(tiny_llama, monkeypatch):
    """The backbone and the head of the new model have no memory of their own before the base's take their places."""
    from pipo.model import pipo as module

    made = module.AutoModel.from_config

    def without_memory(config):
        backbone = made(config)
        assert all(parameter.is_meta for parameter in backbone.parameters())
        return backbone

    base = load_base(tiny_llama)
    monkeypatch.setattr(module.AutoModel, "from_config", without_memory)
    model = module.PipoForCausalLM.from_base(base, tokenizer=tiny.tokenizer())
    assert model.backbone is base.get_decoder()
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_new_heads_depend_on_the_seed_alone(tiny_llama):
    from pipo.convert.from_base import from_base

    a, b, other = (from_base(tiny_llama, residual=1.0, seed=seed).compressor.mlp[0].weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_the_trained_mtp_head_beside_a_base_is_kept(tiny_drafted, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "pipo"):
        model = convert(tiny_drafted, tmp_path / "out")
    given = load_file(Path(tiny_drafted) / MTP_FILE)
    torch.testing.assert_close(model.mtp.fc.weight, given["mtp.fc.weight"])
    assert "the trained one of" in caplog.text


def test_a_head_may_come_from_another_base(tiny_llama, tiny_drafted, tmp_path, caplog):
    model = convert(tiny_llama, tmp_path / "out", mtp_from=tiny_drafted)
    torch.testing.assert_close(model.mtp.fc.weight, load_file(Path(tiny_drafted) / MTP_FILE)["mtp.fc.weight"])
    with pytest.raises(UsageError, match="--mtp-from"):
        convert(tiny_llama, tmp_path / "none", mtp_from=tiny_llama)
    narrow = tmp_path / "narrow"
    tiny.base("llama", hidden_size=32).save_pretrained(narrow)
    tiny.tokenizer().save_pretrained(narrow)
    with pytest.raises(UsageError, match="does not fit the base"):
        convert(str(narrow), tmp_path / "none", mtp_from=tiny_drafted)
    assert not (tmp_path / "none").exists()


def test_a_grown_head_is_said_to_be_one(tiny_llama, tmp_path, caplog):
    convert(tiny_llama, tmp_path / "out")
    assert "MTP head: none beside the base" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_precision_is_the_bases(dtype, tmp_path):
    tiny.base("llama").to(dtype).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    convert(str(tmp_path / "base"), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert load_model(str(tmp_path / "out")).config.dtype == dtype


def front_matter(folder):
    import yaml

    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_cards_front_matter_holds_what_the_hub_accepts(tiny_llama, tmp_path):
    """The hub refuses a local path as a base model, and a licence that is no identifier."""
    save_model(tiny.base("llama"), tiny.tokenizer(), tmp_path / "local", base=tiny_llama)
    assert front_matter(tmp_path / "local").keys() == {"library_name", "tags"}
    save_model(tiny.base("llama"), tiny.tokenizer(), tmp_path / "hub", base="Qwen/Qwen3.5-4B", license="apache-2.0")
    assert front_matter(tmp_path / "hub")["base_model"] == "Qwen/Qwen3.5-4B"
    assert front_matter(tmp_path / "hub")["license"] == "apache-2.0"
    assert "# hub\n" in (tmp_path / "hub" / "README.md").read_text()


def test_a_base_of_the_hub_layout_stays_a_plain_model(tiny_llama):
    assert isinstance(load_base(tiny_llama), type(AutoModelForCausalLM.from_pretrained(tiny_llama)))
