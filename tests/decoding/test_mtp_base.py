"""The MTP head of an uncompressed base: training, saving, and where it comes from."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from places import RUNS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipo.data.batch import Collator
from pipo.data.datasets import ChatDataset
from pipo.errors import UsageError
from pipo.model.families import MTP_FILE, has_trained_mtp
from pipo.model.mtp_base import DraftedBase, draft_targets, grown_mtp, load_mtp, save_mtp
from pipo.pairing import IGNORE
from pipo.runtime.recipe import load_recipe
from pipo.training.plan.estimate import estimate
from pipo.training.recipe import SftRecipe
from pipo.training.sft import sft
from pipo.training.trainer import draft_counts

RECIPE = RUNS / "smollm2_mtp.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    turns = ((f"what {i % 3} " * (i % 4 + 1), f"The answer is {i % 3}") for i in range(12))
    chats = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return str(file)


def recipe(model, data, output, **changes):
    trainer = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 3e-3}
    trainer |= {"use_cpu": True, "bf16": False, "warmup_steps": 0, "save_steps": 100} | changes
    fields = {"model": model, "output": output, "data.train": [data], "data.max_length": 200}
    overrides = [f"{name}={json.dumps(value)}" for name, value in fields.items()]
    return load_recipe(SftRecipe, str(RECIPE), overrides + [f"trainer.{k}={json.dumps(v)}" for k, v in trainer.items()])


def losses(output):
    state = json.loads(max(Path(output).glob("checkpoint-*/trainer_state.json")).read_text())
    return {entry["step"]: entry["mtp_loss"] for entry in state["log_history"] if "mtp_loss" in entry}


def test_a_state_predicts_the_token_after_the_next_one():
    """Against logits by hand: entry p reads (e(t[p+1]), h[p]) and the loss is that of t[p+2], on answers alone."""
    base = tiny.base("llama")
    model = DraftedBase(base, grown_mtp(base))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, tiny.VOCAB, (2, 9), generator=draw)
    labels = ids.clone()
    labels[:, :4] = IGNORE
    hidden = base.model(input_ids=ids).last_hidden_state
    states = model.mtp(hidden[:, :-2], base.model.embed_tokens(ids[:, 1:-1]))
    torch.testing.assert_close(model.mtp_states(ids), states)
    gold = torch.nn.functional.cross_entropy(base.lm_head(states)[:, 2:].flatten(0, 1), ids[:, 4:].flatten())
    torch.testing.assert_close(model(ids, labels).loss, gold)
    assert draft_counts(labels).tolist() == [(draft_targets(labels) != IGNORE).sum().item()] == [10]


def test_a_ragged_batch_equals_its_rows(data):
    base = tiny.base("qwen3")
    model = DraftedBase(base, grown_mtp(base))
    rows = ChatDataset([data], tiny.tokenizer(), max_length=200)
    batch = Collator(2)([rows[i] for i in range(4)])
    counts = draft_counts(batch["labels"])
    whole = model(**batch, num_items_in_batch=counts)
    parts = [model(**Collator(2)([rows[i]]), num_items_in_batch=counts).loss for i in range(4)]
    torch.testing.assert_close(whole.loss, sum(parts))


def test_the_recipe_trains_the_head_alone(data, tiny_llama, tmp_path):
    sft(recipe(tiny_llama, data, str(tmp_path), max_steps=60, learning_rate=1e-2))
    curve = losses(tmp_path)
    assert curve[60] < 0.5 * curve[1]
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_llama, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    names = set(load_file(tmp_path / MTP_FILE))
    assert {"mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.self_attn.q_proj.weight"} <= names
    assert {"tokenizer.json", "provenance.json", "README.md"} <= {file.name for file in tmp_path.iterdir()}
    head = load_mtp(after, str(tmp_path))
    batch = Collator(2)([ChatDataset([data], tiny.tokenizer(), max_length=200)[i] for i in range(12)])
    assert DraftedBase(after, head)(**batch).loss < 0.6 * curve[1]


def test_a_trained_head_is_gone_on_from(data, tiny_llama, tmp_path):
    sft(recipe(tiny_llama, data, str(tmp_path / "first"), max_steps=20))
    sft(recipe(str(tmp_path / "first"), data, str(tmp_path / "second"), max_steps=1, learning_rate=0.0))
    first, second = (load_file(tmp_path / name / MTP_FILE) for name in ("first", "second"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_run_goes_on_exactly(data, tiny_llama, tmp_path):
    sft(recipe(tiny_llama, data, str(tmp_path / "whole"), max_steps=8))
    broken = recipe(tiny_llama, data, str(tmp_path / "broken"), max_steps=8, save_steps=4)
    sft(broken)
    for file in [tmp_path / "broken" / MTP_FILE, *(tmp_path / "broken" / "checkpoint-8").iterdir()]:
        file.unlink()
    (tmp_path / "broken" / "checkpoint-8").rmdir()
    sft(broken, resume=True)
    assert losses(tmp_path / "broken") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    whole, resumed = (load_file(tmp_path / name / MTP_FILE) for name in ("whole", "broken"))
    for name in whole:
        torch.testing.assert_close(whole[name], resumed[name], atol=1e-6, rtol=1e-5)


def test_the_estimate_counts_the_head_alone(data, tiny_llama, tmp_path):
    facts = estimate(recipe(tiny_llama, data, str(tmp_path)))
    head = sum(p.numel() for p in grown_mtp(tiny.base("llama")).parameters())
    assert facts["trained_parameters"] == head
    assert facts["parameters"] == head + sum(p.numel() for p in tiny.base("llama").parameters())


@pytest.mark.parametrize(
    ("override", "field"), [("lora={rank: 2}", "lora"), ("pads={scheme: none}", "pads"), ("loss={teacher: x}", "loss")]
)
def test_what_the_objective_does_not_use_is_refused(override, field):
    with pytest.raises(UsageError, match=field):
        load_recipe(SftRecipe, str(RECIPE), [override])


def test_a_native_head_is_found_and_one_beside_the_base_goes_before_it(tmp_path):
    base = tiny.base("qwen3_5")
    head = grown_mtp(base)
    base.save_pretrained(tmp_path)
    assert not has_trained_mtp(str(tmp_path), base.config)
    with pytest.raises(UsageError, match="no trained MTP head; train one with"):
        load_mtp(base, str(tmp_path))
    save_mtp(head, tmp_path)
    native = {name: tensor + 1 for name, tensor in load_file(tmp_path / MTP_FILE).items()}
    (tmp_path / MTP_FILE).unlink()
    save_file(native | load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert has_trained_mtp(str(tmp_path), base.config)
    torch.testing.assert_close(load_mtp(base, str(tmp_path)).fc.weight, head.fc.weight + 1)
    save_mtp(head, tmp_path)
    torch.testing.assert_close(load_mtp(base, str(tmp_path)).fc.weight, head.fc.weight)


def test_a_head_of_another_base_is_refused(tmp_path):
    base, other = tiny.base("llama"), tiny.base("llama", hidden_size=32)
    save_mtp(grown_mtp(other), tmp_path)
    with pytest.raises(UsageError, match="does not fit"):
        load_mtp(base, str(tmp_path))
