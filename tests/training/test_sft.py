"""Supervised training: masks, normalisation, resume, merged adapters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pipo import PipoForCausalLM
from pipo.convert.folders import convert
from pipo.data.batch import Collator
from pipo.data.chat import Chat
from pipo.data.datasets import ChatDataset, PairDataset
from pipo.data.examples import Examples
from pipo.decoding.engine import LocalEngine
from pipo.errors import UsageError
from pipo.model.families import DELTA_NET, LORA_TARGETS
from pipo.pairing import IGNORE
from pipo.runtime.recipe import load_recipe
from pipo.training.divergence import soft_labels
from pipo.training.recipe import SftRecipe
from pipo.training.regular import use_chunked_loss
from pipo.training.sft import sft, train_arguments
from pipo.training.teacher import Teacher
from pipo.training.trainer import draft_counts, next_token_counts, pair_target_counts

LOSSES = ("backbone_loss", "mtp_loss", "confidence_loss")


def chats(n=12):
    for i in range(n):
        question = "what " * (i % 5 + 1)
        yield {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"The answer is {i}"}]
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats()))
    return str(file)


def recipe(model, data, output, **changes):
    trainer = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }
    fields = {"model": model, "output": str(output), "data": {"train": [data]}, "trainer": trainer}
    return SftRecipe.model_validate(fields | changes)


def curve(output):
    state = json.loads(next(Path(output).glob("checkpoint-*/trainer_state.json")).read_text())
    return [entry for entry in state["log_history"] if "backbone_loss" in entry or "token_loss" in entry]


def row(tokenizer, messages, prefix=""):
    """Ids and labels of a conversation whose template only appends."""
    (row,) = Examples(tokenizer, prefix=prefix).rows(Chat(messages))
    labels = [IGNORE] * len(row.ids)
    for start, stop, _ in row.answers:
        labels[start:stop] = row.ids[start:stop]
    return row.ids, labels


def test_loss_on_every_assistant_turn_and_on_nothing_else():
    tokenizer = tiny.tokenizer()
    messages = [
        {"role": "system", "content": "so"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "how many"},
        {"role": "assistant", "content": "two"},
    ]
    ids, labels = row(tokenizer, messages)
    spans, span = [], []
    for token, label in zip([*ids, None], [*labels, IGNORE], strict=True):
        if label == IGNORE:
            spans, span = ([*spans, span], []) if span else (spans, span)
        else:
            assert label == token
            span.append(token)
    assert [tokenizer.decode(s) for s in spans] == ["one<|im_end|>", "two<|im_end|>"]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")


def test_the_prompt_has_the_ids_of_inference():
    tokenizer = tiny.tokenizer()
    messages = next(chats())["messages"]
    found, labels = row(tokenizer, messages)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    assert found[:first] == ids


def test_a_thinking_prefix_is_part_of_the_prompt():
    tokenizer = tiny.tokenizer()
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "<think>\nso"}]
    _, labels = row(tokenizer, messages, prefix="<think>\n")
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == "so<|im_end|>"


def test_bad_lines_are_named_and_the_rest_trains(tmp_path):
    good = json.dumps(next(chats()))
    bad = {
        2: ("{", "no JSON"),
        3: ('{"messages": []}', "messages"),
        4: ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant turn"),
        5: (
            '{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]}',
            "empty user turn",
        ),
        6: (
            json.dumps({"messages": [{"role": "user", "content": "x" * 999}, {"role": "assistant", "content": "x"}]}),
            "max_length",
        ),
    }
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join([good, *(line for line, _ in bad.values()), good]) + "\n")
    data = ChatDataset([str(file)], tiny.tokenizer(), max_length=200)
    assert len(data) == 2
    for problem, (line, (_, reason)) in zip(data.problems, bad.items(), strict=True):
        assert str(problem).startswith(f"{file}:{line}: ") and reason in problem.reason


def test_nothing_to_train_on_is_an_error(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text("{\n")
    with pytest.raises(UsageError, match=r"chat\.jsonl:1: no JSON"):
        ChatDataset([str(file)], tiny.tokenizer(), max_length=200)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
@pytest.mark.parametrize("objective", ["regular", "mtp"])
def test_answers_that_share_a_row_are_answers_apart(tmp_path, family, objective):
    """The same losses and gradients over the same number of targets, from fewer tokens read."""
    turns = [*next(chats())["messages"], {"role": "user", "content": "how many"}]
    turns += [{"role": "assistant", "content": "so on and on"}, turns[0], {"role": "assistant", "content": "what"}]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps(next(chats())) + "\n")
    model = use_chunked_loss(tiny.base(family)) if objective == "regular" else tiny.drafted(family)
    count = next_token_counts if objective == "regular" else draft_counts
    found = []
    for shared, rows in ((True, 2), (False, 4)):
        data = ChatDataset([str(file)], tiny.tokenizer(), max_length=200, shared=shared)
        assert len(data) == rows
        batch = Collator(2)([data[i] for i in range(rows)])
        out = model(**batch)
        out.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        found.append((int(count(batch["labels"])), out.loss.detach(), gradients, sum(data.lengths)))
    (targets, loss, gradients, read), (targets_apart, loss_apart, gradients_apart, read_apart) = found
    assert targets == targets_apart and read < read_apart
    torch.testing.assert_close(loss, loss_apart, atol=1e-5, rtol=1e-5)
    assert len(gradients) == len(gradients_apart) > 3
    for one, other in zip(gradients, gradients_apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_strict_stops_before_training(data, tiny_pipo, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(data).read_text() + "{\n[]\n")
    strict = recipe(tiny_pipo, str(bad), tmp_path / "out")
    strict.data.strict = True
    with pytest.raises(UsageError, match=r"data\.strict: .*bad\.jsonl:13: no JSON .* \(and 1 more\)"):
        sft(strict)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["shift", "split"])
def test_a_batch_equals_its_concatenation(data, scheme):
    """Losses and gradients of one ragged batch = those of its rows one by one, over the batch's numbers of targets."""
    model = tiny.pipo("llama")
    rows = PairDataset(ChatDataset([data], tiny.tokenizer(), max_length=200), 2, scheme=scheme, max_ratio=0.6, seed=1)
    batch = Collator(2)([rows[i] for i in range(6)])
    counts = pair_target_counts(batch["labels"])
    out = model(**batch)
    out.loss.backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = []
    for i in range(6):
        part = model(**Collator(2)([rows[i]]), num_items_in_batch=counts)
        part.loss.backward()
        parts.append([float(getattr(part, name)) for name in LOSSES])
    for name, total in zip(LOSSES, map(sum, zip(*parts, strict=True)), strict=True):
        assert float(getattr(out, name)) == pytest.approx(total, rel=1e-4)
    for name, parameter in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], atol=1e-5, rtol=1e-3)


def test_accumulation_and_batch_size_give_the_same_steps(data, tiny_pipo, tmp_path):
    trainer = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "use_cpu": True, "save_steps": 3}
    curves = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        output = tmp_path / f"{batch}"
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        sft(recipe(tiny_pipo, data, output, trainer=trainer | sizes))
        curves.append([[entry[name] for name in ("loss", *LOSSES)] for entry in curve(output)])
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[2]), atol=2e-3, rtol=1e-3)


def test_training_lowers_all_three_losses_and_logs_them(data, tiny_pipo, tmp_path):
    trainer = {
        "max_steps": 60,
        "per_device_train_batch_size": 6,
        "logging_steps": 5,
        "learning_rate": 3e-3,
        "use_cpu": True,
    }
    sft(recipe(tiny_pipo, data, tmp_path, pads={"scheme": "shift", "max_ratio": 0.3}, trainer=trainer))
    log = curve(tmp_path)
    for name in ("backbone_loss", "mtp_loss"):
        assert log[-1][name] < 0.5 * log[0][name]
    assert abs(log[-1]["confidence_mean"] - log[-1]["confidence_target_mean"]) < 0.25
    saved = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "provenance.json", "README.md", "chat_template.jinja"} <= saved


def test_lora_writes_a_merged_folder_with_the_adapter_beside_it(data, tiny_pipo, tmp_path):
    sft(recipe(tiny_pipo, data, tmp_path, lora={"rank": 2}))
    before, after = PipoForCausalLM.from_pretrained(tiny_pipo), PipoForCausalLM.from_pretrained(tmp_path)
    changed = {
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert any(name.startswith("backbone.layers.0.self_attn.q_proj") for name in changed)
    assert {"compressor.mlp.0.weight", "mtp.fc.weight", "confidence_head.fc1.weight"} <= changed
    assert "backbone.embed_tokens.weight" not in changed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_lora_reaches_every_linear_layer_of_a_hybrid(data, tmp_path):
    """DeltaNet's projections too; a recipe may name fewer."""
    tiny.pipo("qwen3_5").save_pretrained(tmp_path / "start")
    tiny.tokenizer().save_pretrained(tmp_path / "start")
    before = PipoForCausalLM.from_pretrained(tmp_path / "start").state_dict()
    layers = {name for name in before if name.startswith("backbone.layers.") and "proj" in name}
    assert {f"backbone.layers.0.linear_attn.{name}.weight" for name in DELTA_NET} < layers
    for number, targets in enumerate((None, ["in_proj_qkv", "q_proj"])):
        sft(recipe(str(tmp_path / "start"), data, tmp_path / str(number), lora={"rank": 2, "targets": targets}))
        after = PipoForCausalLM.from_pretrained(tmp_path / str(number)).state_dict()
        changed = {name for name in layers if not torch.equal(before[name], after[name])}
        assert changed == {name for name in layers if targets is None or name.split(".")[-2] in targets}
        adapter = json.loads((tmp_path / str(number) / "adapter" / "adapter_config.json").read_text())
        assert set(adapter["target_modules"]) == set(targets or LORA_TARGETS["qwen3_5_text"])
    with pytest.raises(UsageError, match="lora"):
        sft(recipe(str(tmp_path / "start"), data, tmp_path / "none", lora={"rank": 2, "targets": ["nothing"]}))


def test_a_trained_adapter_is_gone_on_from(data, tiny_llama, tiny_pipo, tmp_path):
    sft(recipe(tiny_pipo, data, tmp_path / "first", lora={"rank": 2}))
    again = {"adapter": str(tmp_path / "first" / "adapter")}
    still = {"max_steps": 1, "learning_rate": 0.0, "use_cpu": True}
    sft(recipe(tiny_pipo, data, tmp_path / "second", lora=again, trainer=still))
    first, second = (PipoForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UsageError, match=r"lora\.adapter"):
        sft(recipe(tiny_pipo, data, tmp_path / "third", lora={"adapter": str(tmp_path)}))
    convert(tiny_llama, tmp_path / "other", confidence_inputs="draft")
    with pytest.raises(UsageError, match=r"lora\.adapter: .*lacks .*confidence_head\.draft"):
        sft(recipe(str(tmp_path / "other"), data, tmp_path / "fourth", lora=again))


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_without_instructions_for_it_is_warned_of(tiny_llama, tiny_pipo, data, monkeypatch, caplog, supported):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    train_arguments(recipe(tiny_pipo, data, "unused", trainer={"use_cpu": True, "bf16": True}))
    LocalEngine.load(tiny_llama, dtype="bfloat16")
    named = [found.message.split(":")[0] for found in caplog.records]
    assert named == ([] if supported else ["trainer.bf16", "--dtype bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pipo", "regular"])
def test_compiled_layers_train_as_plain_ones_do(data, tiny_llama, tiny_pipo, tmp_path, objective):
    model = tiny_pipo if objective == "pipo" else tiny_llama
    how = {"objective": objective, "lora": {"rank": 4}}
    sft(recipe(model, data, tmp_path / "plain", **how))
    sft(recipe(model, data, tmp_path / "compiled", **how, compile=True))
    plain, compiled = curve(tmp_path / "plain"), curve(tmp_path / "compiled")
    assert [entry["loss"] for entry in compiled] == pytest.approx([entry["loss"] for entry in plain], rel=1e-4)
    folders = [str(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("plain", "compiled")]
    one, other = map(load_file, folders)
    assert one.keys() == other.keys()


def test_compiling_without_a_compiler_is_refused(data, tiny_pipo, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"^compile: needs a C\+\+ compiler"):
        sft(recipe(tiny_pipo, data, tmp_path, compile=True))


def test_the_seed_decides_new_adapters_too(data, tiny_pipo, tmp_path):
    for name in ("a", "b"):
        sft(recipe(tiny_pipo, data, tmp_path / name, lora={"rank": 2}))
    a, b = (PipoForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_regular_control_sees_the_same_data_in_the_same_order(data, tiny_llama, tiny_pipo, tmp_path):
    from transformers import AutoModelForCausalLM

    sft(recipe(tiny_llama, data, tmp_path, objective="regular", lora={"rank": 2}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == "llama"
    log = curve(tmp_path)
    assert len(log) == 6 and all(entry["token_loss"] > 0 for entry in log)


def test_another_runs_folder_is_not_trained_over(data, tiny_pipo, tmp_path):
    fields = recipe(tiny_pipo, data, tmp_path, trainer={"max_steps": 1, "save_steps": 1, "use_cpu": True})
    sft(fields)
    with pytest.raises(UsageError, match="--resume"):
        sft(fields)


RUN = """
import sys
from pipo.runtime.recipe import load_recipe
from pipo.training.recipe import SftRecipe
from pipo.training.sft import sft
sft(load_recipe(SftRecipe, sys.argv[1], []), resume=True)
"""


def test_resume_after_a_kill_continues_the_same_curve(data, tiny_pipo, tmp_path):
    trainer = {"max_steps": 30, "per_device_train_batch_size": 2, "save_steps": 5, "logging_steps": 1, "use_cpu": True}
    unbroken = recipe(tiny_pipo, data, tmp_path / "unbroken", trainer=trainer)
    sft(unbroken)
    broken = recipe(tiny_pipo, data, tmp_path / "broken", trainer=trainer)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(broken.model_dump()))
    run = [sys.executable, "-c", RUN, str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(run, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "broken" / "checkpoint-10" / "trainer_state.json").exists() and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    subprocess.run(run, env=environment, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def values(output):
        state = json.loads((Path(output) / "checkpoint-30" / "trainer_state.json").read_text())
        return {e["step"]: [e[n] for n in ("loss", *LOSSES)] for e in state["log_history"] if "loss" in e}

    a, b = values(unbroken.output), values(broken.output)
    assert sorted(a) == sorted(b) == list(range(1, 31))
    torch.testing.assert_close(
        torch.tensor(list(a.values())), torch.tensor([b[step] for step in a]), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_teacher_states_are_those_of_the_clean_text(tiny_llama, data):
    """At every pair position the teacher's state is the one that predicts that target, PADs not seen."""
    teacher = Teacher.load(tiny_llama, partial(soft_labels, weight=1.0), 2, torch.device("cpu"))
    rows = PairDataset(ChatDataset([data], tiny.tokenizer(), max_length=200), 2, scheme="shift", max_ratio=0.9, seed=3)
    batch = Collator(2)([rows[i] for i in range(4)])
    states = teacher.read(batch)
    for row in range(4):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        clean = [(i, token) for i, token in enumerate(ids) if token != 2]
        hidden = teacher.backbone(input_ids=torch.tensor([[t for _, t in clean]])).last_hidden_state[0]
        for number, (position, _) in enumerate(clean):
            if position < 2:
                continue
            state = states.predicting(1 + position % 2)[row, position // 2 - 1]
            torch.testing.assert_close(state, hidden[number - 1], atol=1e-5, rtol=1e-4)


def test_dense_distillation_trains(data, tiny_llama, tiny_pipo, tmp_path):
    sft(recipe(tiny_pipo, data, tmp_path, loss={"teacher": tiny_llama}))
    assert len(curve(tmp_path)) == 6


def test_a_teacher_of_another_vocabulary_is_refused(data, tiny_llama, tiny_pipo, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "other")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"loss\.teacher: its tokenizer"):
        sft(recipe(tiny_pipo, data, tmp_path / "out", loss={"teacher": str(tmp_path / "other")}))


def test_recipes_are_checked_strictly(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("model: a\noutput: b\ndata: {train: [x]}\n")
    assert load_recipe(SftRecipe, str(file), ["pads.max_ratio=0.25"]).pads.max_ratio == 0.25
    assert load_recipe(SftRecipe, str(file), ["trainer.learning_rate=1e-4"]).trainer == {"learning_rate": 1e-4}
    for override, message in {
        "pads.max_ration=1": "did you mean 'max_ratio'",
        "dat=1": "did you mean 'data'",
        "trainer.learning_rat=1": "did you mean 'learning_rate'",
        "trainer.learning_rate=fast": "learning_rate: 'fast' is no number",
        "pads.max_ratio=2": "pads.max_ratio",
        "objective=mtpp": "objective",
        "lora.rank=0": "lora.rank",
        "lora={}": "lora",
        "lora={adapter: a, rank: 3}": "lora",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_recipe(SftRecipe, str(file), [override])
