"""Every recipe in runs/ is valid, and those of the paper's set-up have its sizes of batch."""

import pytest
import yaml
from places import RUNS

from pipo.data.build.recipe import BuildRecipe
from pipo.runtime.recipe import load_recipe
from pipo.training.recipe import DistillRecipe, SftRecipe

DATA = sorted(RUNS.glob("data_*.yaml"))
TRAINING = sorted(set(RUNS.glob("*.yaml")) - set(DATA))
GPUS = 8


def recipe(path):
    kind = DistillRecipe if "rollout" in yaml.safe_load(path.read_text()) else SftRecipe
    return load_recipe(kind, str(path), [])


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path, tmp_path):
    from transformers import TrainingArguments

    found = recipe(path)
    TrainingArguments(tmp_path, **found.trainer | {"bf16": False})


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_data_recipe_is_valid(path):
    load_recipe(BuildRecipe, str(path), [])


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_the_papers_values(size):
    sft, distill = (recipe(RUNS / f"qwen3_5_{size}_{stage}.yaml") for stage in ("sft", "distill"))

    def batch(trainer):
        return GPUS * trainer["per_device_train_batch_size"] * trainer.get("gradient_accumulation_steps", 1)

    assert (batch(sft.trainer), batch(distill.trainer)) == (128, 32)
    assert (sft.trainer["num_train_epochs"], distill.trainer["num_train_epochs"]) == (2, 1)
    assert sft.trainer["learning_rate"] == distill.trainer["learning_rate"] == 1e-4
    assert (sft.lora.rank, sft.lora.alpha, sft.lora.dropout) == (64, 128, 0.05)
    assert sft.data.max_length == distill.rollout.max_new_tokens == 65535
    assert distill.model == sft.model and distill.lora.adapter == f"{sft.output}/adapter"


def test_attention_that_cannot_be_used_is_refused_by_name():
    with pytest.raises(ValueError, match="flex_attention is not supported"):
        SftRecipe(model="x", output="y", data={"train": ["z"]}, attention="flex_attention")
