"""Gradient checkpointing: the same gradients, less kept for backward, in backbone and MTP head."""

import pytest
import tiny
import torch

from pipo.data.packing import Packer
from pipo.training.recipe import Lora
from pipo.training.regular import use_chunked_loss
from pipo.training.sft import NEW_MODULES, add_lora

ROWS = [{"input_ids": list(range(3, 131)), "labels": list(range(3, 131))} for _ in range(2)]
PACKED = Packer(2)(ROWS)
BATCH = {
    "input_ids": torch.tensor([row["input_ids"] for row in ROWS]),
    "labels": torch.tensor([row["labels"] for row in ROWS]),
}


def step(model, batch):
    """Loss, gradients, and the bytes of all tensors that autograd kept."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("batch", [BATCH, PACKED], ids=["batch", "packed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_same_gradients_and_less_memory(family, lora, batch):
    model = tiny.pipo(family).train()
    if lora:
        model = add_lora(model, Lora(rank=2), NEW_MODULES)
        torch.nn.init.normal_(model.get_parameter(next(n for n, _ in model.named_parameters() if "lora_B" in n)))
    loss, gradients, kept = step(model, batch)
    model.gradient_checkpointing_enable()
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert any("mtp" in name for name, m in model.named_modules() if m in checkpointed)
    again, same, less = step(model, batch)
    assert loss == pytest.approx(again, rel=1e-6)
    assert gradients.keys() == same.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], same[name], atol=1e-6, rtol=1e-5, msg=name)
    assert less < 0.5 * kept


def test_the_regular_control_too():
    model = add_lora(use_chunked_loss(tiny.base("llama")).train(), Lora(rank=2), [])
    _, gradients, kept = step(model, BATCH)
    model.gradient_checkpointing_enable()
    _, same, less = step(model, BATCH)
    for name in gradients:
        torch.testing.assert_close(gradients[name], same[name], atol=1e-6, rtol=1e-5, msg=name)
    assert less < 0.5 * kept
