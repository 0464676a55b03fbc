"""The figures against brute force and known values."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pipo.errors import UsageError
from pipo.measure.evals import metrics


def line(question: str, correct: bool, **changes):
    same = {"part": None, "completion_tokens": 10, "steps": 6, "drafted": 5, "accepted": 4, "finish_reason": "stop"}
    untimed = {"text": "x", "ttft_ms": None, "tpot_ms": None, "loop_tokens": None}
    return {"question_id": question, "correct": correct} | same | untimed | changes


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 7):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * correct + [False] * (n - correct), k))
                assert metrics.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_has_its_own_interval_and_k():
    lines = [line(f"{i:02}", i % 4 < j) for i in range(40) for j in range(4)]  # 0 to 3 of 4 samples are right
    found = metrics.accuracy(lines, 2)
    assert found["pass_at_k"] == pytest.approx(np.mean([0, 1 / 2, 5 / 6, 1])) and found["pass_k"] == 2
    low, high = found["pass_at_k_ci95"]
    assert low < found["pass_at_k"] < high and high - low < 0.3
    with pytest.raises(UsageError, match="k = 5 is more than the 4 samples"):
        metrics.accuracy(lines, 5)


def test_accuracy_is_over_questions():
    lines = [line("b", False), line("a", True), line("a", False), line("b", False)]
    found = metrics.accuracy(lines)
    assert (found["n_questions"], found["samples"], found["avg_at_k"], found["pass_at_k"]) == (2, 2, 0.25, 0.5)


def test_bootstrap_interval():
    values = [1.0] * 60 + [0.0] * 40
    low, high = metrics.bootstrap_ci95(values)
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.01)
    assert metrics.bootstrap_ci95(values) == [low, high]
    assert metrics.bootstrap_ci95([0.25]) == [0.25, 0.25]


def test_ratios_are_of_sums():
    lines = [line("a", True), line("b", True, completion_tokens=30, steps=30, drafted=0, accepted=0)]
    found = metrics.decoding(lines)
    assert (found["tokens_per_step"], found["acceptance_rate"]) == (40 / 36, 4 / 5)
    nothing = metrics.decoding([line("a", False, completion_tokens=0, steps=0, drafted=0, accepted=0)])
    assert nothing["tokens_per_step"] is None and nothing["acceptance_rate"] is None


def test_times_are_of_timed_lines():
    timed = [
        line("a", True, ttft_ms=t, tpot_ms=p, loop_tokens=n) for t, p, n in ((1, 10, 30), (9, 20, 10), (3, None, 0))
    ]
    found = metrics.timing([*timed, line("b", True)])
    assert found == {"ttft_ms": 3, "tpot_ms": (10 * 30 + 20 * 10) / 40}
    assert metrics.timing([line("b", True)]) == {"ttft_ms": None, "tpot_ms": None}


def test_parts_of_a_mixture():
    found = metrics.summarise([line("1", True, part="x"), line("2", False, part="y"), line("3", True, part="y")])
    assert {part: figures["avg_at_k"] for part, figures in found["parts"].items()} == {"x": 1.0, "y": 0.5}
    assert "parts" not in metrics.summarise([line("1", True)])


@pytest.mark.parametrize("unit", ["a", "no ", "then we add 3 and 4 to get 7. "])
def test_a_loop_at_the_end_is_found(unit):
    assert metrics.repeats("First this. " + unit * 70)
    assert metrics.repeats("First this. " + unit * 70 + unit[: len(unit) // 2])
    assert not metrics.repeats(unit * 70 + "So the answer is 7.")


def test_an_answer_is_no_loop():
    assert not metrics.repeats("red (1), red (2), red (3)\nThe answer is 3.") and not metrics.repeats("")


def test_a_paired_difference_leaves_out_what_the_questions_share():
    names = [f"{i:03}" for i in range(100)]
    ours = [line(name, i < 40) for i, name in enumerate(names)]
    theirs = [line(name, i < 50) for i, name in reversed(list(enumerate(names)))]
    mean, (low, high) = metrics.paired_difference(ours, theirs)
    assert mean == pytest.approx(-0.1)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 100)  # ten questions differ; the hard and the easy ones add nothing
    assert (low, high) == pytest.approx((-0.1 - half, -0.1 + half), abs=0.01)
    with pytest.raises(ValueError, match="longer"):
        metrics.paired_difference(ours[1:], theirs)
