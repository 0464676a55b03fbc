"""Layout of conversations in pairs: parity PADs and imitated rejections."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipo.data.layout import lay_out
from pipo.pairing import IGNORE

PAD = 0
spans = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=5)
schemes = st.sampled_from(["none", "shift", "split"])


def conversation(parts):
    ids, labels = [], []
    for answer, length in parts:
        new = list(range(len(ids) + 1, len(ids) + 1 + length))
        ids += new
        labels += new if answer else [IGNORE] * length
    return ids, labels


@given(spans, schemes, st.floats(0, 1), st.integers(0, 99))
def test_real_tokens_and_their_labels_survive_in_order(parts, scheme, ratio, seed):
    ids, labels = conversation(parts)
    out = lay_out(ids, labels, PAD, scheme, ratio, random.Random(seed))
    real = [(token, label) for token, label in zip(out.ids, out.labels, strict=True) if token != PAD]
    assert real == list(zip(ids, labels, strict=True))


@given(spans, schemes, st.floats(0, 1), st.integers(0, 99))
def test_pads_are_second_and_never_targets(parts, scheme, ratio, seed):
    out = lay_out(*conversation(parts), PAD, scheme, ratio, random.Random(seed))
    assert len(out.ids) % 2 == 0
    assert all(token != PAD for token in out.ids[0::2])
    assert all(label == IGNORE for token, label in zip(out.ids, out.labels, strict=True) if token == PAD)


@given(spans, schemes, st.integers(0, 99))
def test_every_answer_starts_a_pair(parts, scheme, seed):
    out = lay_out(*conversation(parts), PAD, scheme, 0.5, random.Random(seed))
    previous = IGNORE
    for i, (token, label) in enumerate(zip(out.ids, out.labels, strict=True)):
        if token == PAD:
            continue
        if label != IGNORE and previous == IGNORE:
            assert i % 2 == 0
        previous = label


def test_shift_moves_what_follows_by_one():
    class Second:  # rejects the second draft alone
        calls = 0

        def random(self):
            self.calls += 1
            return 0.0 if self.calls == 2 else 1.0

    ids, labels = conversation([(False, 2), (True, 7)])
    out = lay_out(ids, labels, PAD, "shift", 0.5, Second())
    assert out.ids == [1, 2, 3, 4, 5, PAD, 6, 7, 8, 9]


def test_split_keeps_the_other_pairs_together():
    ids, labels = conversation([(False, 3), (True, 6)])
    out = lay_out(ids, labels, PAD, "split", 1 / 3, random.Random(0))
    assert out.ids[:4] == [1, 2, 3, PAD]
    pairs = [tuple(out.ids[i : i + 2]) for i in range(4, len(out.ids), 2)]
    whole = [(4, 5), (6, 7), (8, 9)]
    assert sum(pair in whole for pair in pairs) == 2 and len(pairs) == 4


@pytest.mark.parametrize("scheme", ["shift", "split"])
def test_ratio_zero_inserts_nothing_and_one_rejects_all(scheme):
    ids, labels = conversation([(False, 4), (True, 8)])
    assert lay_out(ids, labels, PAD, scheme, 0.0, random.Random(0)).ids == ids
    assert lay_out(ids, labels, PAD, scheme, 1.0, random.Random(0)).ids.count(PAD) == 8


def test_shift_rejects_at_the_asked_rate():
    ids, labels = conversation([(True, 4000)])
    out = lay_out(ids, labels, PAD, "shift", 0.5, random.Random(1))
    pairs = len(out.ids) // 2
    assert 0.45 < out.ids.count(PAD) / pairs < 0.55
