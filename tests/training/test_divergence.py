"""Divergences against automatic differentiation of the exact expressions on a small vocabulary."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pipo.training import divergence

ROWS, VOCABULARY = 7, 11


@pytest.fixture
def logits():
    """Student's, teacher's, and one token a row."""
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(2, ROWS, VOCABULARY, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(VOCABULARY, (ROWS,))


def gradient(loss, student):
    return torch.autograd.grad(loss.sum(), student)[0]


def exact_kl(student, teacher):
    p, q = F.softmax(student, -1), F.softmax(teacher, -1)
    return (p * (p / q).log()).sum(-1)


def test_full_is_the_exact_divergence(logits):
    student, teacher, token = logits
    loss, target = divergence.full(student, teacher, token)
    torch.testing.assert_close(loss, exact_kl(student, teacher))
    torch.testing.assert_close(gradient(loss, student), gradient(exact_kl(student, teacher), student))
    variation = 0.5 * (F.softmax(student, -1) - F.softmax(teacher, -1)).abs().sum(-1)
    torch.testing.assert_close(target, 1 - variation.detach())


def test_topk_of_everything_is_full(logits):
    student, teacher, token = logits
    for k in (VOCABULARY, 99):
        loss, _ = divergence.topk(student, teacher, token, k=k)
        torch.testing.assert_close(loss, exact_kl(student, teacher))
        torch.testing.assert_close(gradient(loss, student), gradient(exact_kl(student, teacher), student))


def test_topk_is_the_divergence_on_the_union(logits):
    student, teacher, token = logits
    loss, _ = divergence.topk(student, teacher, token, k=2)
    expected = []
    for s, t, y in zip(student, teacher, token, strict=True):
        union = sorted({*s.topk(2).indices.tolist(), *t.topk(2).indices.tolist(), int(y)})
        expected.append(exact_kl(s[union][None], t[union][None])[0])
    torch.testing.assert_close(loss, torch.stack(expected))
    torch.testing.assert_close(gradient(loss, student), gradient(torch.stack(expected), student))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalized_jsd(logits, beta):
    student, teacher, token = logits
    s, t = F.softmax(student, -1), F.softmax(teacher, -1)
    m = (1 - beta) * s + beta * t
    parts = {0.0: (t * (t / s).log()).sum(-1), 1.0: (s * (s / t).log()).sum(-1)}
    between = beta * (t * (t / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)
    expected = parts.get(beta, between)
    loss, _ = divergence.full(student, teacher, token, beta=beta)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalized_jsd_is_that_of_trl(beta):
    """Loss and gradient as TRL's, see tests/data/README.md."""
    given = load_file(Path(__file__).parent / "trl_generalized_jsd.safetensors")
    student = given["student"].requires_grad_()
    loss, _ = divergence.full(student, given["teacher"], torch.zeros(len(student), dtype=torch.long), beta=beta)
    torch.testing.assert_close(loss, given[f"loss_{beta}"])
    torch.testing.assert_close(gradient(loss, student), given[f"grad_{beta}"])


def test_the_mean_gradient_of_samples_is_that_of_the_exact_divergence():
    """The expectation is taken exactly, over all texts of two tokens, the second of which depends on the first."""
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)  # row 0: of the first token, 1 + y: after token y
    student.requires_grad_()
    p = F.softmax(student, -1).detach()
    mean = torch.zeros_like(student)
    for first in range(4):
        rows = torch.tensor([0, 1 + first])
        for second in range(4):
            loss, _ = divergence.sampled(student[rows], teacher[rows], torch.tensor([first, second]))
            mean += p[0, first] * p[1 + first, second] * gradient(loss, student)
    reached = torch.cat([torch.ones(1), p[0]])
    torch.testing.assert_close(mean, gradient(reached * exact_kl(student, teacher), student))


def test_the_baseline_makes_samples_less_noisy():
    torch.manual_seed(2)
    student, teacher = torch.randn(1, 9).repeat(64, 1).requires_grad_(), 6 * torch.randn(1, 9).repeat(64, 1)
    drawn = torch.multinomial(F.softmax(student, -1), 1)[:, 0]
    with_baseline = gradient(divergence.sampled(student, teacher, drawn)[0], student)
    s, t = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    at = torch.arange(64), drawn
    without = gradient((s[at] - t[at]).detach() * s[at], student)
    assert with_baseline.var(0).sum() < without.var(0).sum()


@pytest.mark.parametrize(
    "compare",
    [divergence.full, partial(divergence.topk, k=3), divergence.sampled, partial(divergence.soft_labels, weight=1)],
)
def test_the_teacher_moves_the_gradient(logits, compare):
    student, teacher, token = logits
    here = gradient(compare(student, teacher, token)[0], student)
    there = gradient(compare(student, -teacher, token)[0], student)
    assert (here - there).abs().max() > 0.1


def test_acceptance_is_that_of_speculative_sampling(logits):
    student, teacher, token = logits
    p, q = F.softmax(student, -1).detach(), F.softmax(teacher, -1)
    expected = torch.stack([(q[i, y] / p[i, y]).clamp(max=1) for i, y in enumerate(token)])
    for compare in (partial(divergence.topk, k=2), divergence.sampled):
        _, target = compare(student, teacher, token)
        torch.testing.assert_close(target, expected)
        assert not target.requires_grad
    # its mean over the student's draws is 1 - TV, the target of `full` and of soft labels
    every = torch.stack([divergence.agreement(student, teacher, torch.full((ROWS,), y)) for y in range(VOCABULARY)], 1)
    for compare in (divergence.full, partial(divergence.soft_labels, weight=0.5)):
        _, target = compare(student, teacher, token)
        torch.testing.assert_close((p * every).sum(-1), target)
        assert not target.requires_grad
