"""Chunked losses against plain autograd."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pipo.model.losses import chunked_head_loss, confidence_bce, cross_entropy
from pipo.training.divergence import soft_labels
from pipo.training.teacher import TeacherStates


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("train_head", [True, False])
def test_chunks_give_the_whole_loss_and_gradient(chunk, train_head):
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=train_head)
    targets = torch.randint(0, 11, (7,))
    total, gold = chunked_head_loss(cross_entropy, hidden, weight, [targets], chunk)
    (3 * total).backward()
    got = hidden.grad.clone(), weight.grad.clone() if train_head else None
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    (3 * F.cross_entropy(logits, targets, reduction="sum")).backward()
    torch.testing.assert_close(got[0], hidden.grad)
    if train_head:
        torch.testing.assert_close(got[1], weight.grad)
    torch.testing.assert_close(gold, logits.softmax(-1)[range(7), targets].detach())


def test_no_targets_is_a_zero_that_keeps_the_graph():
    hidden = torch.zeros(0, 5, requires_grad=True)
    total, gold = chunked_head_loss(cross_entropy, hidden, torch.randn(11, 5), [torch.zeros(0, dtype=torch.long)])
    total.backward()
    assert total.item() == 0 and gold.shape == (0,) and hidden.grad.shape == (0, 5)


def test_dense_distillation_against_autograd_of_the_exact_divergence():
    torch.manual_seed(0)
    hidden, states = torch.randn(6, 5, requires_grad=True), torch.randn(6, 4)
    head, teacher_head, targets = torch.randn(11, 5), torch.randn(11, 4), torch.randint(0, 11, (6,))
    teacher = TeacherStates(torch.zeros(1), teacher_head, partial(soft_labels, weight=0.7))
    total, _ = chunked_head_loss(teacher.loss, hidden, head, [targets, states], chunk=4)
    total.backward()
    got, hidden.grad = hidden.grad.clone(), None
    log_s, log_t = (hidden @ head.T).log_softmax(-1), (states @ teacher_head.T).log_softmax(-1)
    exact = F.nll_loss(log_s, targets, reduction="sum") + 0.7 * (log_t.exp() * (log_t - log_s)).sum()
    exact.backward()
    torch.testing.assert_close(total.detach(), exact.detach())
    torch.testing.assert_close(got, hidden.grad)


def test_confidence_target_takes_no_gradient():
    logits, target = torch.zeros(3, requires_grad=True), torch.full((3,), 0.5, requires_grad=True)
    confidence_bce(logits, target).backward()
    assert target.grad is None and torch.allclose(logits.grad, torch.zeros(3))
