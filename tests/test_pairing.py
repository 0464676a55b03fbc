"""Pairs, slots, PADs and acceptance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipo.errors import UsageError
from pipo.pairing import (
    Slot,
    accept,
    check_threshold,
    pad_mask,
    pad_to_even,
    pair_mask,
    pair_positions,
    to_pairs,
    token1_targets,
    token2_targets,
)

PAD = 7
tokens = st.lists(st.integers(0, 20).filter(lambda t: t != PAD), max_size=40)


@given(tokens)
def test_pairs_and_back_is_the_identity(ids):
    assert [token for pair in to_pairs(ids, PAD) for token in pair if token != PAD] == ids


@given(tokens)
def test_pad_is_only_ever_second_and_only_at_the_end(ids):
    pairs = to_pairs(ids, PAD)
    assert all(first != PAD for first, _ in pairs)
    assert all(second != PAD for _, second in pairs[:-1])
    assert pad_to_even(ids, PAD)[: len(ids)] == ids
    assert len(pad_to_even(ids, PAD)) - len(ids) == len(ids) % 2


@given(st.integers(1, 12))
def test_targets_are_the_next_pair(pairs):
    ids = torch.arange(2 * pairs)[None]
    for i, (first, second) in enumerate(zip(token1_targets(ids)[0], token2_targets(ids)[0], strict=True)):
        assert (first, second) == (2 * i + 2, 2 * i + 3)
    assert token1_targets(ids).shape == token2_targets(ids).shape == (1, pairs - 1)


def test_masks_and_positions_of_a_left_padded_batch():
    mask = pair_mask(torch.tensor([[0, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]]))
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert pair_positions(mask).tolist() == [[0, 0, 1], [0, 1, 2]]
    assert pad_mask(torch.tensor([[PAD, PAD, 2, PAD]]), PAD).tolist() == [[False, True, False, True]]


def test_slot_tokens_never_hold_a_rejected_draft():
    assert Slot(1, 2, 0.9, True).tokens == [1, 2]
    assert Slot(1, 2, 0.1, False).tokens == [1]
    assert Slot(1).tokens == [1]


def test_acceptance_is_at_or_above_the_threshold_in_float32():
    c = torch.tensor([0.0, 0.95, 1.0])
    assert accept(c, 0.0).all()
    assert accept(c, 0.95).tolist() == [False, True, True]
    assert not accept(c, 1.01).any()
    # 0.95 rounds to 0.9492 in bfloat16, which is below 0.95 when compared in float32
    assert not accept(torch.tensor([0.95], dtype=torch.bfloat16), 0.95).item()


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.5", None, True])
def test_thresholds_that_are_refused(value):
    with pytest.raises(UsageError, match="confidence_threshold"):
        check_threshold(value)
