"""On-policy distillation: what is rolled out, who teaches, what is learned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from pipo import PipoForCausalLM
from pipo.convert.folders import convert
from pipo.data.batch import Collator
from pipo.decoding.engine import Completion
from pipo.errors import UsageError
from pipo.pairing import IGNORE, Slot
from pipo.training import recipe as recipes
from pipo.training.checkpoint import last_checkpoint
from pipo.training.distill.rollout import lay_out_answer, roll_out
from pipo.training.distill.run import DistillTrainer, distill, prepare
from pipo.training.plan.estimate import estimate
from pipo.training.recipe import DistillRecipe, Lora
from pipo.training.sft import NEW_MODULES, add_lora
from pipo.training.teacher import Teacher

PAD = 2
ROLLOUT = {"max_new_tokens": 12, "threshold": 0.3}
WHOLE = {"top_p": 1.0, "top_k": 0}
"""The student's whole distribution."""
TRAINER = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """With an answer, without, and a line that is no prompt."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    asked = [[{"role": "user", "content": "what " * (i % 4 + 1)}] for i in range(8)]
    asked[1].append({"role": "assistant", "content": "never read"})
    rows = [json.dumps({"messages": messages}) for messages in asked]
    file.write_text("\n".join([*rows, '{"messages": []}']))
    return str(file)


def recipe(model, prompts, output, **changes):
    fields = {
        "model": model,
        "output": str(output),
        "data": {"train": [prompts]},
        "rollout": ROLLOUT,
        "trainer": TRAINER,
    }
    return DistillRecipe.model_validate(fields | changes)


def curve(output, step):
    state = json.loads((Path(output) / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "backbone_loss" in entry]


def test_a_rejected_draft_is_a_label_and_pad_is_what_was_read():
    slots = [Slot(11, 12, 0.9, True), Slot(13, 14, 0.1, False), Slot(15)]
    layout = lay_out_answer(Completion([5, 6, 7], slots, "", "stop"), PAD)
    assert layout.ids == [5, 6, 7, PAD, 11, 12, 13, PAD, 15, PAD]
    assert layout.labels == [IGNORE] * 4 + [11, 12, 13, 14, 15, IGNORE]


def test_an_answer_depends_on_its_seed_alone(tiny_pipo):
    model, tokenizer = PipoForCausalLM.from_pretrained(tiny_pipo).train(), tiny.tokenizer()
    how = recipes.Rollout(max_new_tokens=9, threshold=0.4)
    together = roll_out(model, tokenizer, [[5, 6, 7], [8, 9]], how, "seed")
    assert together == roll_out(model, tokenizer, [[5, 6, 7], [8, 9]], how, "seed")
    assert together != roll_out(model, tokenizer, [[5, 6, 7], [8, 9]], how, "other")
    (alone,) = roll_out(model, tokenizer, [[5, 6, 7]], how, "seed")
    assert alone.token_ids == together[0].token_ids
    assert model.training


@pytest.mark.parametrize("bf16", [False, True])
def test_the_teacher_reads_in_the_students_precision(tiny_pipo, prompts, tmp_path, monkeypatch, bf16):
    read, seen = Teacher.read, []
    monkeypatch.setattr(Teacher, "read", lambda *a: seen.append(torch.is_autocast_enabled("cpu")) or read(*a))
    trainer = TRAINER | {"max_steps": 1, "bf16": bf16}
    distill(recipe(tiny_pipo, prompts, tmp_path / "out", trainer=trainer, lora={"rank": 2}))
    assert seen == [bf16]


@torch.no_grad()
def test_the_trainer_reads_an_answer_as_the_decoder_did(tiny_pipo):
    """Teacher-forced on an answer's layout, the argmax is the greedy answer, rejected drafts included."""
    model = PipoForCausalLM.from_pretrained(tiny_pipo).eval()
    options = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, confidence_threshold=0.5, **options)
    slots = out.slots[0]
    layout = lay_out_answer(Completion([5, 6, 7], slots, "", "length"), PAD)
    forward = model(torch.tensor([layout.ids]), return_logits=True)
    drafted = [i for i, slot in enumerate(slots) if slot.draft is not None]
    assert drafted
    for logits, place, where in ((forward.logits, 0, range(len(slots))), (forward.mtp_logits, 1, drafted)):
        logits[..., PAD] = float("-inf")
        for i in where:
            assert int(logits[0, 1 + i].argmax()) == layout.labels[4 + 2 * i + place]


@torch.no_grad()
def test_with_the_adapter_off_the_student_is_its_teacher(tiny_pipo, tiny_llama):
    student = add_lora(PipoForCausalLM.from_pretrained(tiny_pipo, dtype="float32"), Lora(rank=2), NEW_MODULES)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32")
    rows = [[5, 6, 7, PAD, 8, PAD, 9, 10], [5, 6, 11, 12]]
    batch = Collator(PAD)([{"input_ids": row, "labels": row} for row in rows])
    found = Teacher.with_adapter_off(student, None, PAD).read(batch)
    expected = base.model(torch.tensor([[5, 6, 7, 8, 9, 10]])).last_hidden_state[0]
    torch.testing.assert_close(found.hidden[0], expected[[0, 1, 2, 2, 3, 3, 4, 5]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.head, base.lm_head.weight)


@pytest.mark.parametrize("divergence", [{"kind": "topk", "k": 8}, {"kind": "full", "beta": 0.5}, {"kind": "sampled"}])
def test_every_divergence_trains(prompts, tiny_pipo, tiny_llama, tmp_path, divergence):
    distill(recipe(tiny_pipo, prompts, tmp_path, teacher=tiny_llama, divergence=divergence, rollout=ROLLOUT | WHOLE))
    log = curve(tmp_path, 4)
    assert len(log) == 4
    for entry in log:
        assert 1 <= entry["rollout_tokens"] <= 12 and 1 <= entry["rollout_tokens_per_step"] <= 2
        assert 0 <= entry["rollout_ended"] <= 1 and 0 <= entry["confidence_target_mean"] <= 1
    assert PipoForCausalLM.from_pretrained(tmp_path).config.model_type == "pipo"


def test_the_student_comes_nearer_to_the_teacher(prompts, tiny_pipo, tiny_llama, tmp_path):
    trainer = TRAINER | {"max_steps": 60, "learning_rate": 1e-2}
    distill(recipe(tiny_pipo, prompts, tmp_path, teacher=tiny_llama, divergence={"kind": "full"}, trainer=trainer))
    log = curve(tmp_path, 60)
    for name in ("backbone_loss", "mtp_loss"):
        assert sum(entry[name] for entry in log[-5:]) < 0.7 * sum(entry[name] for entry in log[:5])


def test_resumed_is_unbroken(prompts, tiny_pipo, tmp_path):
    same = {"lora": {"rank": 2}, "trainer": TRAINER | {"save_steps": 2}}
    for name in ("whole", "broken"):
        distill(recipe(tiny_pipo, prompts, tmp_path / name, **same))
    shutil.rmtree(tmp_path / "broken" / "checkpoint-4")
    distill(recipe(tiny_pipo, prompts, tmp_path / "broken", **same), resume=True)
    whole, broken = ([entry["loss"] for entry in curve(tmp_path / name, 4)] for name in ("whole", "broken"))
    assert len(whole) == 4 and whole == pytest.approx(broken, rel=1e-4)


RUN = """
import sys
from pipo.runtime.recipe import load_recipe
from pipo.training.distill.run import distill
from pipo.training.recipe import DistillRecipe
distill(load_recipe(DistillRecipe, sys.argv[1], []), resume=True)
"""


def test_resume_after_a_kill_continues_the_same_curve(prompts, tiny_pipo, tmp_path):
    same = {"lora": {"rank": 2}, "trainer": TRAINER | {"max_steps": 12, "save_steps": 2}}
    distill(recipe(tiny_pipo, prompts, tmp_path / "whole", **same))
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(tiny_pipo, prompts, tmp_path / "broken", **same).model_dump(exclude_unset=True)))
    run = [sys.executable, "-c", RUN, str(file)]
    quiet = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(run, stdout=subprocess.DEVNULL, **quiet)
    while not (tmp_path / "broken" / "checkpoint-4" / "trainer_state.json").exists() and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, **quiet)
    names = ("loss", "backbone_loss", "mtp_loss", "confidence_loss", "rollout_tokens")
    whole, broken = ([[e[n] for n in names] for e in curve(tmp_path / name, 12)] for name in ("whole", "broken"))
    assert len(whole) == len(broken) == 12
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(broken), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_that_a_kill_tore_is_passed_over(tmp_path):
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"global')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        for name in ("model.safetensors", "optimizer.pt"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
    (tmp_path / "checkpoint-14").mkdir()
    assert last_checkpoint(str(tmp_path), resume=True) == str(tmp_path / "checkpoint-10")
    with pytest.raises(UsageError, match="--resume"):
        last_checkpoint(str(tmp_path), resume=False)
    assert last_checkpoint(str(tmp_path / "checkpoint-14"), resume=False) is None


def test_what_is_logged_is_the_divergence_of_each_head(prompts, tiny_pipo, tiny_llama, tmp_path, monkeypatch):
    """KL(student || teacher) a position, computed anew from the rollouts, and what is said of the answers."""
    seen = []
    answer = DistillTrainer.answer
    monkeypatch.setattr(DistillTrainer, "answer", lambda self, *args: seen.append(answer(self, *args)) or seen[-1])
    trainer = TRAINER | {"max_steps": 1, "learning_rate": 0.0}
    distill(recipe(tiny_pipo, prompts, tmp_path, teacher=tiny_llama, divergence={"kind": "full"}, trainer=trainer))
    (entry,), (batch,) = curve(tmp_path, 1), seen
    model, base = PipoForCausalLM.from_pretrained(tiny_pipo), AutoModelForCausalLM.from_pretrained(tiny_llama)
    expected = {"backbone_loss": [], "mtp_loss": []}
    tokens = 0
    with torch.no_grad():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
            ids, labels = ids[mask], labels[mask]
            out = model(ids[None], return_logits=True)
            for place in range(2, len(ids)):
                if labels[place] == IGNORE:
                    continue
                name, logits = list(zip(expected, (out.logits, out.mtp_logits), strict=True))[place % 2]
                clean = ids[:place][ids[:place] != PAD]
                t = base(clean[None]).logits[0, -1].log_softmax(-1)
                s = logits[0, place // 2 - 1].log_softmax(-1)
                expected[name].append(float((s.exp() * (s - t)).sum()))
                tokens += int(ids[place] != PAD)
    for name, values in expected.items():
        assert entry[name] == pytest.approx(sum(values) / len(values), rel=1e-3)
    assert entry["rollout_tokens"] == pytest.approx(tokens / 4) and entry["rollout_repetition"] == 0


def test_a_pad_that_the_teacher_does_not_have_is_no_obstacle(prompts, tmp_path):
    """A PAD that conversion added: one more row than the base, which reads the text without it."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template += "{# <|pad|> #}"
    base = tiny.base("llama", vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    convert(str(tmp_path / "base"), tmp_path / "pipo")
    assert PipoForCausalLM.from_pretrained(tmp_path / "pipo").config.pad_token_id == len(tokenizer)
    for kind in ("topk", "full"):
        fields = {"teacher": str(tmp_path / "base"), "divergence": {"kind": kind}}
        distill(recipe(str(tmp_path / "pipo"), prompts, tmp_path / kind, **fields))
        assert len(curve(tmp_path / kind, 4)) == 4


def test_rollouts_end_where_decoding_ends(prompts, tiny_pipo, tmp_path):
    folder = Path(shutil.copytree(tiny_pipo, tmp_path / "student"))
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [1, *range(3, tiny.VOCAB)]}))
    model, how = PipoForCausalLM.from_pretrained(folder), recipes.Rollout(max_new_tokens=9)
    answers = roll_out(model, tiny.tokenizer(), [[5, 6]] * 3, how, "seed")
    assert all(answer.finish_reason == "stop" and answer.token_ids[-1] > 2 for answer in answers)
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    with pytest.raises(UsageError, match=r"model: its decoding stops at \[7\], its chat template ends a turn with 1"):
        distill(recipe(str(folder), prompts, tmp_path / "out", lora={"rank": 2}))


def test_a_merged_student_is_no_teacher(prompts, tiny_pipo, tmp_path):
    """With the adapter off, what was trained and merged before is still compressed: a teacher has to be named."""
    distill(recipe(tiny_pipo, prompts, tmp_path / "first", lora={"rank": 2}, trainer=TRAINER | {"max_steps": 1}))
    with pytest.raises(UsageError, match="teacher: .* was trained already"):
        distill(recipe(str(tmp_path / "first"), prompts, tmp_path / "second", lora={"rank": 2}))


def test_the_dry_run_says_what_training_does(prompts, tiny_pipo, tiny_llama, tmp_path):
    """Prompts, steps and parameters are those of the run; the cache has room for what decoding fills."""
    trainer = TRAINER | {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 3}
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    student = PipoForCausalLM.from_pretrained(tiny_pipo)
    whole = sum(p.numel() for p in student.parameters())
    for teacher, lora in ((tiny_llama, None), (None, {"rank": 2})):
        made = recipe(tiny_pipo, prompts, tmp_path / str(teacher is None), teacher=teacher, lora=lora, trainer=trainer)
        plan = estimate(made)
        assert not Path(made.output).exists()
        distill(made)
        assert plan["prompts"] == 8 and plan["left_out"] == 1 and plan["steps"] == len(curve(made.output, 9)) == 9
        assert plan["teacher_parameters"] == (0 if teacher is None else base.num_parameters())
        if lora is None:
            assert plan["parameters"] == plan["trained_parameters"] == whole
    adapted = add_lora(student, Lora(rank=2), NEW_MODULES)
    assert plan["parameters"] == sum(p.numel() for p in adapted.parameters())
    assert plan["trained_parameters"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    rows = torch.full((3, plan["longest"]), 5)
    options = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "confidence_threshold": 1.0}
    filled = PipoForCausalLM.from_pretrained(tiny_pipo).generate(rows, max_new_tokens=12, **options).kv_bytes
    assert filled <= plan["rollout_cache_gb"] * 1e9 < 1.5 * filled


def test_a_teacher_of_another_vocabulary_is_refused(prompts, tiny_pipo, tiny_llama, tmp_path):
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(other)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UsageError, match="tokenizer"):
        distill(recipe(tiny_pipo, prompts, tmp_path / "out", teacher=str(other)))
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(other)
    with pytest.raises(UsageError, match="EOS"):
        distill(recipe(tiny_pipo, prompts, tmp_path / "out", teacher=str(other)))


def test_prompts_are_read_as_the_recipe_says(prompts, tiny_pipo, tiny_llama, tmp_path):
    """Options of the template, a prefix that it does not write, and `strict`, which the fixture's bad line ends."""
    folder = Path(shutil.copytree(tiny_pipo, tmp_path / "student"))
    told = "{% if add_generation_prompt and quick %}{{ 'so ' }}{% endif %}"
    with (folder / "chat_template.jinja").open("a") as file:
        file.write(told)
    data = {"train": [prompts], "template": {"quick": True}, "prefix": "so "}
    tokenizer, found = prepare(recipe(str(folder), prompts, tmp_path / "out", teacher=tiny_llama, data=data))
    assert len(found) == 8
    assert all(tokenizer.decode(found[i]["prompt"]).endswith("<|im_start|>assistant\nso ") for i in range(8))
    _, found = prepare(recipe(tiny_pipo, prompts, tmp_path / "out", teacher=tiny_llama, data={**data, "template": {}}))
    assert all(tokenizer.decode(found[i]["prompt"]).endswith("<|im_start|>assistant\nso ") for i in range(8))
    with pytest.raises(UsageError, match=r"data\.template\.quick"):
        prepare(recipe(tiny_pipo, prompts, tmp_path / "out", teacher=tiny_llama, data=data))
    with pytest.raises(UsageError, match=r"data\.strict: .*prompts\.jsonl:9"):
        distill(
            recipe(tiny_pipo, prompts, tmp_path / "out", data={"train": [prompts], "strict": True}, lora={"rank": 2})
        )


def test_bad_recipes_are_refused(prompts, tiny_pipo, tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        recipe(tiny_pipo, prompts, tmp_path)
    with pytest.raises(ValueError, match="beta"):
        recipe(tiny_pipo, prompts, tmp_path, teacher="t", divergence={"kind": "sampled", "beta": 0.5})
    with pytest.raises(ValueError, match="threshold"):
        recipe(tiny_pipo, prompts, tmp_path, teacher="t", rollout={"threshold": -1})


def test_sampled_is_refused_where_tokens_are_no_draws_of_the_students_whole_distribution(prompts, tiny_pipo, tmp_path):
    fields = {"teacher": "t", "divergence": {"kind": "sampled"}}
    with pytest.raises(ValueError, match=r"set top_p 1\.0, top_k 0 "):
        recipe(tiny_pipo, prompts, tmp_path, **fields)
    with pytest.raises(ValueError, match=r"set temperature 1\.0 "):
        recipe(tiny_pipo, prompts, tmp_path, rollout=WHOLE | {"temperature": 0.6}, **fields)
    model = PipoForCausalLM.from_pretrained(tiny_pipo)
    model.set_shortlist([5, 6, 7])
    model.save_pretrained(tmp_path / "listed")
    tiny.tokenizer().save_pretrained(tmp_path / "listed")
    with pytest.raises(UsageError, match="shortlist"):
        distill(recipe(str(tmp_path / "listed"), prompts, tmp_path / "out", rollout=WHOLE, **fields))
    assert not (tmp_path / "out").exists()
