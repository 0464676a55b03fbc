"""Both stages of training on kernels that take no float32, with the attention that the recipes for GPUs name."""

import json

import pytest
import torch
from gpu_stand_ins import gpu_kernels  # noqa: F401 - a fixture
from half import write_folders
from safetensors.torch import load_file

from pipo.training import precision
from pipo.training.distill.run import distill
from pipo.training.recipe import DistillRecipe, SftRecipe
from pipo.training.sft import sft

TRAINER = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "logging_steps": 1,
    "bf16": True,
    "gradient_checkpointing": True,
}


@pytest.fixture(scope="module", params=["llama", "qwen3_5"])
def folders(request, tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(autouse=True)
def with_instructions(monkeypatch):
    monkeypatch.setattr(precision, "cpu_lacks_bfloat16", lambda: False)


def losses(folder):
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize(("packing", "lora"), [(False, None), (True, {"rank": 2})])
def test_sft(folders, tmp_path, packing, lora):
    data = {"train": [str(folders / "chats.jsonl")], "packing": packing}
    shared = {"model": str(folders / "pipo"), "data": data, "lora": lora, "trainer": TRAINER}
    sft(SftRecipe(output=str(tmp_path / "flash"), attention="flash_attention_2", **shared))
    sft(SftRecipe(output=str(tmp_path / "sdpa"), attention="sdpa", **shared))
    assert losses(tmp_path / "flash") == pytest.approx(losses(tmp_path / "sdpa"), rel=0.02)


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize(("teacher", "lora"), [(True, None), (True, {"rank": 2}), (False, {"rank": 2})])
def test_distillation(folders, tmp_path, teacher, lora):
    recipe = DistillRecipe(
        model=str(folders / "pipo"),
        teacher=str(folders / "base") if teacher else None,
        output=str(tmp_path / "out"),
        data={"train": [str(folders / "chats.jsonl")]},
        rollout={"max_new_tokens": 6},
        attention="flash_attention_2",
        lora=lora,
        trainer=TRAINER,
    )
    distill(recipe)
    assert len(losses(tmp_path / "out")) == 2
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
