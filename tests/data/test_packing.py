"""A packed row is its examples apart: states, losses, gradients; nothing is predicted across a boundary."""

import json
from functools import partial

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipo.data.batch import Collator
from pipo.data.packing import Packer
from pipo.errors import UsageError
from pipo.pairing import IGNORE, packed_pair_positions, token1_targets, token2_targets
from pipo.runtime.recipe import load_recipe
from pipo.training.divergence import soft_labels
from pipo.training.recipe import SftRecipe
from pipo.training.regular import use_chunked_loss
from pipo.training.sft import sft
from pipo.training.teacher import Teacher
from pipo.training.trainer import next_token_counts, pair_target_counts

PAD = 2
LOSSES = ("backbone_loss", "mtp_loss", "confidence_loss")


def example(seed, pairs):
    """Every token a target, PADs among the seconds. Labels at the start too, which nothing may predict."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, tiny.VOCAB, (2 * pairs,), generator=generator).tolist()
    for i in range(3, len(ids), 4):
        ids[i] = PAD
    return {"input_ids": ids, "labels": [IGNORE if token == PAD else token for token in ids]}


EXAMPLES = [example(seed, pairs) for seed, pairs in enumerate((5, 1, 70, 3))]  # 70: more than a chunk of DeltaNet


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([2, 8, 32]))
def test_layout(sizes, multiple):
    rows = [example(i, size) for i, size in enumerate(sizes)]
    packed = {name: values[0].tolist() for name, values in Packer(PAD, multiple)(rows).items()}
    length = len(packed["input_ids"])
    assert length % multiple == 0 and 0 <= length - 2 * sum(sizes) < multiple
    start = 0
    for row in rows:
        stop = start + len(row["input_ids"])
        assert packed["input_ids"][start:stop] == row["input_ids"]
        assert packed["labels"][start:stop] == [IGNORE] * 2 + row["labels"][2:]
        assert packed["position_ids"][start:stop] == list(range(stop - start))
        start = stop
    assert packed["labels"][start:] == [IGNORE] * (length - start)
    assert all(token == PAD for token in packed["input_ids"][start:])


def test_no_target_across_a_boundary():
    """Targets of a packed row are those of its examples: the last pair of one predicts nothing."""
    packed = Packer(PAD)(EXAMPLES)["labels"]
    for targets in (token1_targets, token2_targets):
        apart = [target for row in EXAMPLES for target in [*targets(torch.tensor([row["labels"]]))[0].tolist(), IGNORE]]
        assert targets(packed)[0].tolist() == apart[:-1]
    assert packed_pair_positions(torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1]])).tolist() == [[0, 1, 0, 0]]


@pytest.fixture(params=[("llama", "eager"), ("llama", "sdpa"), ("qwen3", "sdpa"), ("qwen3_5", "sdpa")], ids="-".join)
def model(request):
    family, attention = request.param
    pipo = tiny.pipo(family)
    pipo.set_attn_implementation(attention)
    return pipo


def assert_same(model, packed, apart, losses):
    """`packed` and `apart` are calls that return outputs with losses over the same counts."""
    out = packed()
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = apart()
    sum(part.loss for part in parts).backward()
    for name in losses:
        total = sum(float(getattr(part, name).detach()) for part in parts)
        assert float(getattr(out, name).detach()) == pytest.approx(total, rel=1e-4)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-5, rtol=2e-3, msg=name)


def test_losses_and_gradients_are_those_of_the_examples(model):
    packed = Packer(PAD, 16)(EXAMPLES)
    counts = pair_target_counts(packed["labels"])
    singles = [Collator(PAD)([row]) for row in EXAMPLES if len(row["input_ids"]) > 2]  # one pair predicts nothing
    assert sum(pair_target_counts(single["labels"]) for single in singles).equal(counts)
    assert_same(
        model,
        partial(model, **packed, num_items_in_batch=counts),
        lambda: [model(**single, num_items_in_batch=counts) for single in singles],
        ("loss", *LOSSES),
    )


@torch.no_grad()
def test_no_example_sees_another(model):
    """Other tokens in front, and none at all, leave an example's states as they are."""
    last = EXAMPLES[-1]
    alone = model(**{name: value for name, value in Packer(PAD)([last]).items() if name != "labels"})
    for before in (EXAMPLES[:3], [example(9, 5), example(8, 2)]):
        batch = Packer(PAD)([*before, last])
        batch.pop("labels")
        out = model(**batch)
        for name in ("backbone_hidden_states", "mtp_hidden_states"):
            found, expected = getattr(out, name)[0], getattr(alone, name)[0]
            torch.testing.assert_close(found[-len(expected) :], expected, atol=1e-5, rtol=1e-4)


def test_the_drawn_drafts_are_those_of_the_examples():
    """A confidence head that sees the drafted token judges the same drafts, drawn by the same noise."""
    model = tiny.pipo("llama", confidence_inputs="draft")
    rows = [row | {"draft_noise": torch.rand(len(row["input_ids"]) // 2 - 1).tolist()} for row in EXAMPLES]
    packed = Packer(PAD, 16)(rows)
    assert packed["draft_noise"].shape[1] == packed["input_ids"].shape[1] // 2 - 1
    counts = pair_target_counts(packed["labels"])
    singles = [Collator(PAD)([row]) for row in rows if len(row["input_ids"]) > 2]
    assert_same(
        model,
        partial(model, **packed, num_items_in_batch=counts),
        lambda: [model(**single, num_items_in_batch=counts) for single in singles],
        ("loss", *LOSSES),
    )


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_the_regular_control_too(family):
    model = use_chunked_loss(tiny.base(family))
    packed = Packer(PAD, 16, unpredicted=1)(EXAMPLES)
    counts = next_token_counts(packed["labels"])
    singles = [Collator(PAD)([row]) for row in EXAMPLES]
    assert sum(next_token_counts(single["labels"]) for single in singles).equal(counts)
    assert_same(
        model,
        partial(model, **packed, num_items_in_batch=counts),
        lambda: [model(**single, num_items_in_batch=counts) for single in singles],
        ("loss",),
    )


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
@torch.no_grad()
def test_a_teacher_keeps_them_apart(family, tmp_path):
    tiny.base(family).save_pretrained(tmp_path)
    teacher = Teacher.load(str(tmp_path), partial(soft_labels, weight=1.0), PAD, torch.device("cpu"))
    packed = teacher.read(Packer(PAD, 16)(EXAMPLES)).hidden[0]
    start = 0
    for row in EXAMPLES:
        alone = teacher.read(Collator(PAD)([row])).hidden[0]
        torch.testing.assert_close(packed[start : start + len(alone)], alone, atol=1e-5, rtol=1e-4)
        start += len(alone)


def test_wrong_use_is_refused(tmp_path):
    model = tiny.pipo("llama")
    packed = Packer(PAD)(EXAMPLES)
    with pytest.raises(UsageError, match="attention_mask"):
        model(**packed, attention_mask=torch.ones_like(packed["input_ids"]))
    with pytest.raises(UsageError, match="position_ids"):
        model(**{name: value.repeat(2, 1) for name, value in packed.items()})
    file = tmp_path / "r.yaml"
    file.write_text("model: a\noutput: b\nattention: paged\ndata: {train: [x], packing: true}\n")
    with pytest.raises(UsageError, match="attention"):
        load_recipe(SftRecipe, str(file), [])


@pytest.mark.parametrize("objective", ["pipo", "regular", "mtp"])
def test_a_packed_run_is_the_padded_run(tiny_llama, tiny_pipo, tmp_path, objective):
    file = tmp_path / "chat.jsonl"
    with file.open("w") as out:
        for i in range(9):
            turns = [
                {"role": "user", "content": "what " * (i + 1)},
                {"role": "assistant", "content": f"so {i} " * (i + 1)},
            ]
            out.write(json.dumps({"messages": turns}) + "\n")
    trainer = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
    curves = []
    for packing in (False, True):
        output = tmp_path / str(packing)
        fields = {"data": {"train": [str(file)], "packing": packing}, "output": str(output), "objective": objective}
        fields |= {"model": tiny_pipo if objective == "pipo" else tiny_llama, "trainer": trainer}
        sft(SftRecipe.model_validate(fields))
        state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
        curves.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_recurrent_kernels_are_told_where_examples_begin(monkeypatch):
    """On a GPU with them, examples are read in one call; elsewhere one by one."""
    from pipo.model import packed

    decoder = tiny.base("qwen3_5").get_decoder()
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert "seq_idx" not in packed.packed_inputs(decoder, positions)
    monkeypatch.setattr(packed, "missing_kernels", list)
    monkeypatch.setattr(packed, "on_gpu", lambda tensor: True)
    fresh = tiny.base("qwen3_5").get_decoder()
    places = packed.packed_inputs(fresh, positions)
    assert places["seq_idx"].tolist() == [[0, 0, 0, 1, 1, 2]] and places["cu_seq_lens_q"].tolist() == [0, 3, 5, 6]
    assert not any("forward" in module.__dict__ for module in fresh.modules())
    assert "seq_idx" not in packed.packed_inputs(tiny.base("llama").get_decoder(), positions)
