"""Frozen weights in the checkpoint's precision, trained ones in float32, and what is saved as what it started from."""

import json

import pytest
import torch
from half import write_folders
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipo.decoding.engine import LocalEngine
from pipo.errors import UsageError
from pipo.training import precision
from pipo.training.distill.run import DistillTrainer, distill
from pipo.training.plan.estimate import estimate
from pipo.training.recipe import DistillRecipe, SftRecipe
from pipo.training.sft import sft, student, train_arguments
from pipo.training.teacher import Teacher

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1, "bf16": True}
LORA = {"rank": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bfloat16 base, a PIPO model of it, and chats."""
    return write_folders(tmp_path_factory.mktemp("bfloat16"), "llama")


@pytest.fixture(autouse=True)
def with_instructions(monkeypatch):
    """As on a CPU that has them."""
    monkeypatch.setattr(precision, "cpu_lacks_bfloat16", lambda: False)


def sft_recipe(folders, out, model="pipo", trainer=(), **fields):
    data = {"train": [str(folders / "chats.jsonl")]}
    return SftRecipe(model=str(folders / model), output=str(out), data=data, trainer=TRAINER | dict(trainer), **fields)


def distill_recipe(folders, out, **fields):
    data, rollout = {"train": [str(folders / "chats.jsonl")]}, {"max_new_tokens": 6}
    return DistillRecipe(
        model=str(folders / "pipo"), output=str(out), data=data, rollout=rollout, trainer=TRAINER, **fields
    )


def precisions(model):
    """Of what is trained, and of what is not."""
    return tuple({p.dtype for p in model.parameters() if p.requires_grad == trained} for trained in (True, False))


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [
        ({"lora": LORA}, torch.bfloat16),
        ({"lora": LORA, "dtype": "float32"}, torch.float32),
        ({"lora": LORA, "trainer": {"bf16": False}}, torch.float32),
        ({}, None),
    ],
)
def test_what_is_trained_is_float32_and_what_is_frozen_the_checkpoints(fields, frozen, folders, tmp_path):
    recipe = sft_recipe(folders, tmp_path / "out", **fields)
    trained, kept = precisions(student(recipe, train_arguments(recipe)))
    assert trained == {torch.float32} and kept == ({frozen} if frozen else set())


def test_a_cpu_without_instructions_holds_float32(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_lacks_bfloat16", lambda: True)
    recipe = sft_recipe(folders, tmp_path / "out", lora=LORA)
    assert precisions(student(recipe, train_arguments(recipe)))[1] == {torch.float32}


def test_bfloat16_without_autocast_is_refused(folders, tmp_path):
    recipe = sft_recipe(folders, tmp_path / "out", lora=LORA, dtype="bfloat16", trainer={"bf16": False})
    with pytest.raises(UsageError, match=r"^dtype: .*trainer\.bf16=true"):
        student(recipe, train_arguments(recipe))


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("pipo", {"lora": LORA}),
        ("pipo", {}),
        ("base", {"objective": "regular", "lora": LORA}),
        ("base", {"objective": "mtp"}),
    ],
)
def test_a_saved_model_has_the_precision_of_its_start(model, fields, folders, tmp_path):
    sft(sft_recipe(folders, tmp_path / "out", model, **fields))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert LocalEngine.load(str(tmp_path / "out")).model.dtype == torch.float32


def test_a_float32_model_stays_one(folders, tiny_pipo, tmp_path):
    recipe = sft_recipe(folders, tmp_path / "out", lora=LORA).model_copy(update={"model": tiny_pipo})
    sft(recipe)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_student_teacher_and_rollouts_compute_alike(folders, tmp_path, monkeypatch):
    """All of them under bfloat16 autocast, the teacher with the recipe's attention."""
    seen = {"rollout": set(), "train": set()}
    answer, forward, load = DistillTrainer.answer, torch.nn.Linear.forward, Teacher.load
    place = ["train"]

    def watched(self, x):
        out = forward(self, x)
        seen[place[0]].add(out.dtype)
        return out

    def answering(self, *args):
        place[0] = "rollout"
        try:
            return answer(self, *args)
        finally:
            place[0] = "train"

    made = []
    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    monkeypatch.setattr(DistillTrainer, "answer", answering)
    monkeypatch.setattr(Teacher, "load", lambda *args: made.append(args[-2:]) or load(*args))
    distill(distill_recipe(folders, tmp_path / "out", lora=LORA, teacher=str(folders / "base"), attention="eager"))
    assert torch.float32 not in seen["rollout"] and seen["rollout"]
    assert made == [(torch.bfloat16, "eager")]
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_the_estimate_counts_the_precision_that_training_has(folders, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    for dtype, size in (("float32", 4), ("auto", 2)):
        recipe = distill_recipe(folders, tmp_path / "out", lora=LORA, teacher=str(folders / "base"), dtype=dtype)
        plan = estimate(recipe)
        assert plan["teacher_weights_gb"] * 1e9 == pytest.approx(size * base.num_parameters())
        made = student(recipe, train_arguments(recipe))
        held = sum(p.numel() * p.element_size() for p in made.parameters())
        assert plan["weights_gb"] * 1e9 == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("name", ["lm_head", "backbone.embed_tokens"])
def test_adapters_do_not_part_a_tied_head_from_its_embeddings(name, folders, tmp_path):
    recipe = sft_recipe(folders, tmp_path / "out", lora=LORA | {"full": [name]})
    with pytest.raises(UsageError, match=r"^lora\.full: "):
        student(recipe, train_arguments(recipe))
