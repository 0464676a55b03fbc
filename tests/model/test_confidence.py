"""A confidence head that sees the drafted token: what it reads, what it learns, and that trainer and decoder agree."""

import json
import shutil
from functools import partial

import pytest
import tiny
import torch
import torch.nn.functional as F

from pipo import PipoForCausalLM
from pipo.convert.from_base import from_base
from pipo.convert.published import export_published
from pipo.data.batch import Collator
from pipo.data.datasets import ChatDataset, PairDataset
from pipo.errors import UsageError
from pipo.measure.check import check
from pipo.model.confidence import draw_drafts
from pipo.pairing import IGNORE, token2_targets
from pipo.training.distill.run import distill
from pipo.training.divergence import full, soft_labels
from pipo.training.recipe import DistillRecipe, SftRecipe
from pipo.training.sft import sft
from pipo.training.teacher import Teacher

PAD = 2
IDS = torch.randint(3, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny.pipo("llama", confidence_inputs="draft")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "chat.jsonl"
    turns = [("what " * (i % 4 + 1), f"The answer is {i}") for i in range(8)]
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(file)


def by_hand(model, out, drafts):
    """The head's formula, written out, at draft [B, L-1]."""
    head = model.confidence_head
    states = torch.cat([out.backbone_hidden_states[:, :-1], out.mtp_hidden_states], dim=-1)
    logits = out.mtp_logits.clone()
    logits[..., PAD] = float("-inf")
    log_prob = logits.log_softmax(-1).gather(-1, drafts[..., None])
    embedding = model.embed(drafts)
    unit = embedding / (embedding.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    inner = head.fc1(head.norm(states)) + head.draft(torch.cat([unit, log_prob], dim=-1))
    return head.fc2(F.silu(inner)).squeeze(-1)


@torch.no_grad()
def test_it_judges_the_token_that_was_drafted(model):
    drafts = torch.randint(3, tiny.VOCAB, (2, 5), generator=torch.Generator().manual_seed(1))
    out = model(input_ids=IDS, drafts=drafts, return_logits=True)
    torch.testing.assert_close(out.confidence_logits, by_hand(model, out, drafts), atol=1e-4, rtol=1e-4)
    other = model(input_ids=IDS, drafts=drafts.roll(1, 1), return_logits=True).confidence_logits
    assert (out.confidence_logits - other).abs().min() > 1e-4
    read = model(input_ids=IDS, return_logits=True)
    assert torch.equal(read.drafts, token2_targets(IDS))
    some = torch.where(torch.arange(5) == 2, drafts, IGNORE)
    mixed = model(input_ids=IDS, drafts=some).drafts
    assert torch.equal(mixed, torch.where(some == IGNORE, read.drafts, drafts))


@torch.no_grad()
def test_without_training_it_is_the_head_of_states():
    base = tiny.base("llama")
    states = from_base(base, tokenizer=tiny.tokenizer())
    draft = from_base(base, tokenizer=tiny.tokenizer(), confidence_inputs="draft")
    draft.confidence_head.load_state_dict(states.confidence_head.state_dict(), strict=False)
    a, b = states(input_ids=IDS, return_logits=True), draft(input_ids=IDS, return_logits=True)
    torch.testing.assert_close(a.confidence_logits, b.confidence_logits)
    assert a.drafts is None and states.confidence_head.draft is None


def test_pads_that_were_read_leave_no_trace_in_the_gradient(model):
    """A PAD has no probability; where it stands nothing may become infinite."""
    ids, labels = IDS.clone(), IDS.clone()
    ids[:, 5] = PAD
    labels[:, :6] = IGNORE
    model.zero_grad()
    model(input_ids=ids, labels=labels, drafts=token2_targets(labels)).confidence_loss.backward()
    gradients = [p.grad for p in model.confidence_head.parameters()]
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in gradients)
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == {
        f"confidence_head.{name}" for name, _ in model.confidence_head.named_parameters()
    }
    model.zero_grad()


def test_drafts_are_drawn_from_the_heads_own_distribution():
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 8), torch.randn(9, 8)
    expected = (hidden @ weight.T)[0].index_fill(0, torch.tensor([PAD]), float("-inf")).softmax(-1)
    even = (torch.arange(20_000) + 0.5) / 20_000
    drawn = draw_drafts(hidden.expand(len(even), -1), weight, PAD, even)
    torch.testing.assert_close(torch.bincount(drawn, minlength=9) / len(even), expected, atol=1e-4, rtol=0)
    edges = draw_drafts(hidden.expand(2, -1), weight, PAD, torch.tensor([0.0, 1.0]))
    assert (expected[edges[:1]] > 0).all() and 0 <= int(edges[1]) < 9
    assert draw_drafts(hidden[:0], weight, PAD, even[:0]).shape == (0,)


@torch.no_grad()
def test_the_label_is_a_target_and_no_input(model):
    """Hard labels: a draft from the MTP head, and 1 where it is the label."""
    noise = torch.rand(2, 5, generator=torch.Generator().manual_seed(3))
    out = model(input_ids=IDS, labels=IDS, draft_noise=noise, return_logits=True)
    pad = torch.tensor([PAD])
    shares = out.mtp_logits.index_fill(-1, pad, float("-inf")).softmax(-1).cumsum(-1)
    drawn = (shares <= noise[..., None]).sum(-1)
    assert torch.equal(out.drafts, drawn)
    right = (drawn == token2_targets(IDS)).float()
    torch.testing.assert_close(out.confidence_logits, by_hand(model, out, drawn), atol=1e-4, rtol=1e-4)
    expected = F.binary_cross_entropy_with_logits(out.confidence_logits, right)
    torch.testing.assert_close(out.confidence_loss, expected)
    again = model(input_ids=IDS, labels=token2_targets(IDS).new_full(IDS.shape, 7), draft_noise=noise)
    assert torch.equal(again.drafts, drawn)


@torch.no_grad()
@pytest.mark.parametrize("compare", [partial(soft_labels, weight=1.0), partial(full, beta=1.0)])
def test_a_teacher_sets_the_acceptance_of_the_draft(model, tiny_llama, compare):
    teacher = Teacher.load(tiny_llama, compare, PAD, torch.device("cpu"))
    batch = Collator(PAD)([{"input_ids": row, "labels": row} for row in IDS.tolist()])
    drafts = torch.randint(3, tiny.VOCAB, (2, 5), generator=torch.Generator().manual_seed(1))
    out = model(**batch, drafts=drafts, teacher=teacher.read(batch), return_logits=True)
    clean = teacher.backbone(input_ids=IDS).last_hidden_state[:, 2:-1:2] @ teacher.head.T  # states that predict 3, 5, …
    ratio = clean.softmax(-1).gather(-1, drafts[..., None]) / out.mtp_logits.softmax(-1).gather(-1, drafts[..., None])
    target = ratio.squeeze(-1).clamp(max=1)
    expected = F.binary_cross_entropy_with_logits(out.confidence_logits, target)
    torch.testing.assert_close(out.confidence_loss, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_decoder_judges_what_it_drafted(model):
    """Cached, batched and sampled: every slot's confidence is the trainer's for that draft."""
    ids = torch.tensor([[PAD, PAD, 5, 6, 7], [8, 9, 10, 11, 12]])
    options = {"do_sample": True, "temperature": 1.3, "eos_token_id": None, "return_dict_in_generate": True}
    torch.manual_seed(0)
    out = model.generate(
        ids, attention_mask=(ids != PAD).long(), max_new_tokens=14, confidence_threshold=0.5, **options
    )
    kept = []
    for row, slots in enumerate(out.slots):
        prompt = [token for token in ids[row].tolist() if token != PAD] + [PAD]
        pairs = [token for slot in slots for token in slot.pair(PAD)]
        drafts = [IGNORE] * (len(prompt) // 2 - 1) + [IGNORE if s.draft is None else s.draft for s in slots]
        forward = model(torch.tensor([prompt + pairs]), drafts=torch.tensor([drafts]), return_logits=True)
        confidence = torch.sigmoid(forward.confidence_logits[0, -len(slots) :])
        for slot, expected in zip(slots, confidence.tolist(), strict=True):
            if slot.draft is not None:
                assert slot.confidence == pytest.approx(expected, abs=1e-4)
                kept.append(slot.accepted)
    assert len(kept) > 10 and 0 < sum(kept) < len(kept)


def test_check_compares_the_confidence_too(folder, monkeypatch):
    assert check(folder).ok
    whole = PipoForCausalLM.confidence
    monkeypatch.setattr(PipoForCausalLM, "confidence", lambda self, *args: whole(self, *args) * 0.9)
    assert not check(folder).ok


def test_saved_and_loaded(model, folder, tiny_pipo):
    again = PipoForCausalLM.from_pretrained(folder)
    assert again.config.confidence_inputs == "draft"
    assert torch.equal(again.confidence_head.draft.weight, model.confidence_head.draft.weight)
    assert PipoForCausalLM.from_pretrained(tiny_pipo).config.confidence_inputs == "states"
    with pytest.raises(UsageError, match="confidence_inputs"):
        from_base(tiny.base("llama"), tokenizer=tiny.tokenizer(), confidence_inputs="both")


def test_the_authors_layout_has_no_room_for_it(tmp_path):
    model = from_base(tiny.base("llama"), tokenizer=tiny.tokenizer(), residual=0.0, confidence_inputs="draft")
    with pytest.raises(UsageError, match="confidence_inputs: draft"):
        export_published(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_noise_belongs_to_the_example_and_not_to_the_batch(data):
    chats = ChatDataset([data], tiny.tokenizer(), max_length=200)
    same = {"scheme": "shift", "max_ratio": 0.5, "seed": 1}
    rows, plain = PairDataset(chats, PAD, **same, noise=True), PairDataset(chats, PAD, **same)
    batch = Collator(PAD, 8)([rows[i] for i in range(4)])
    pairs = batch["input_ids"].shape[1] // 2
    assert batch["draft_noise"].shape == (4, pairs - 1)
    for i in range(4):
        assert rows[i] == rows[i] and rows[i]["input_ids"] == plain[i]["input_ids"]
        alone = Collator(PAD)([rows[i]])["draft_noise"][0]
        assert torch.equal(batch["draft_noise"][i, : len(alone)], alone) and len(set(alone.tolist())) > 1
    first = rows[0]["draft_noise"]
    rows.set_epoch(1)
    assert rows[0]["draft_noise"] != first
    assert "draft_noise" not in Collator(PAD)([plain[0]])


TRAINER = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "save_steps": 2, "use_cpu": True}


@pytest.mark.parametrize("stage", ["sft", "sft with teacher", "distill"])
def test_training_learns_and_resumes_exactly(stage, folder, data, tiny_llama, tmp_path):
    fields = {"model": folder, "data": {"train": [data]}, "lora": {"rank": 2}, "trainer": TRAINER}
    if stage == "sft with teacher":
        fields["loss"] = {"teacher": tiny_llama}
    if stage == "distill":
        fields |= {"teacher": tiny_llama, "rollout": {"max_new_tokens": 8, "threshold": 0.5}}

    def train(name, resume=False):
        if stage == "distill":
            distill(DistillRecipe.model_validate(fields | {"output": str(tmp_path / name)}), resume=resume)
        else:
            sft(SftRecipe.model_validate(fields | {"output": str(tmp_path / name)}), resume=resume)
        state = json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())
        return [entry["confidence_loss"] for entry in state["log_history"] if "confidence_loss" in entry]

    whole = train("whole")
    train("broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoint-4")
    assert train("broken", resume=True) == pytest.approx(whole, rel=1e-4) and len(whole) == 4
    before, after = PipoForCausalLM.from_pretrained(folder), PipoForCausalLM.from_pretrained(tmp_path / "whole")
    assert not torch.equal(before.confidence_head.draft.weight, after.confidence_head.draft.weight)


def test_a_head_that_sees_the_draft_tells_right_from_wrong():
    """Where rightness depends on the token alone, the head of states can only say the mean; the other one knows."""
    torch.manual_seed(0)
    model = tiny.pipo("llama", confidence_inputs="draft")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("confidence_head"))
    with torch.no_grad():
        model.mtp.decoder.norm.weight.zero_()  # drafts are uniform, whatever the state
    optimizer = torch.optim.Adam(model.confidence_head.parameters(), lr=1e-2)
    ids = torch.randint(3, tiny.VOCAB, (8, 24))
    labels = torch.where(ids % 2 == 0, ids, ids - 1).clamp(min=4)
    labels[:, 3::2] = 100  # the right draft is always this one
    forced = torch.where(torch.rand(8, 11) < 0.5, 100, 57)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels, drafts=forced).confidence_loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = torch.sigmoid(model(input_ids=ids, drafts=forced, return_logits=True).confidence_logits)
    assert said[forced == 100].min() > 0.8 and said[forced == 57].max() < 0.2
