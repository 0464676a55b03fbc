"""The authors' checkpoints: same numbers in, same bits out, nothing made up."""

import shutil

import pytest
import torch
from places import PARITY
from safetensors.torch import load_file, save_file

from pipo import PipoForCausalLM
from pipo.convert.published import export_published
from pipo.errors import UsageError

FOLDERS = [("mlp_tied", None), ("linear_untied", None), ("mlp_tied/adapter", "mlp_tied")]
TENSORS = {
    "latents": "latents",
    "backbone_hidden": "backbone_hidden_states",
    "mtp_hidden": "mtp_hidden_states",
    "logits1": "logits",
    "logits2": "mtp_logits",
    "confidence_logits": "confidence_logits",
    "backbone_loss": "backbone_loss",
    "mtp_loss": "mtp_loss",
    "confidence_loss": "confidence_loss",
    "total_loss": "loss",
}


def load(folder, base):
    return PipoForCausalLM.from_published(PARITY / folder, None if base is None else PARITY / base)


@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize(("folder", "base"), FOLDERS)
def test_agrees_with_the_authors_model(folder, base, case):
    expected = load_file(PARITY / folder / "expected.safetensors")
    given = {name.removeprefix(case)[1:]: tensor for name, tensor in expected.items() if name.startswith(case)}
    with torch.no_grad():
        out = load(folder, base)(input_ids=given["input_ids"], labels=given["labels"], return_logits=True)
    for theirs, ours in TENSORS.items():
        torch.testing.assert_close(getattr(out, ours).reshape(given[theirs].shape), given[theirs], atol=1e-4, rtol=0)


@pytest.mark.parametrize("folder", ["mlp_tied", "linear_untied"])
def test_round_trip_bit_for_bit(folder, tmp_path):
    export_published(load(folder, None), tmp_path)
    before, after = load_file(PARITY / folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = PipoForCausalLM.from_published(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), load(folder, None).parameters(), strict=True))


def damaged(tmp_path, change):
    folder = tmp_path / "damaged"
    shutil.copytree(PARITY / "mlp_tied", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_missing_tensor_is_named(tmp_path):
    folder = damaged(tmp_path, lambda tensors: tensors.pop("compressor.mlp.0.weight"))
    with pytest.raises(UsageError, match=r"missing tensors compressor\.mlp\.0\.weight"):
        PipoForCausalLM.from_published(folder)


def test_an_unknown_tensor_is_named(tmp_path):
    folder = damaged(tmp_path, lambda tensors: tensors.update({"mtp.extra": torch.zeros(1)}))
    with pytest.raises(UsageError, match=r"unknown tensors mtp\.extra"):
        PipoForCausalLM.from_published(folder)


def test_a_misshapen_tensor_is_named(tmp_path):
    folder = damaged(tmp_path, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(2, 2)}))
    with pytest.raises(UsageError, match=r"misshapen tensors mtp\.fc\.weight"):
        PipoForCausalLM.from_published(folder)


def test_an_adapter_needs_its_base():
    with pytest.raises(UsageError, match="--base"):
        PipoForCausalLM.from_published(PARITY / "mlp_tied" / "adapter")


def test_pad_is_no_eos_after_import():
    model = load("mlp_tied", None)
    assert model.config.pad_token_id == 300
    assert model.generation_config.eos_token_id == 302


def test_both_names_of_the_backbone_are_read(tmp_path):
    def rename(tensors):
        for name in [name for name in tensors if name.startswith("model.language_model.")]:
            tensors[name.replace("model.language_model.", "model.")] = tensors.pop(name)

    PipoForCausalLM.from_published(damaged(tmp_path, rename))
