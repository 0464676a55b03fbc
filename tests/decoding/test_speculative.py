"""Uncompressed decoding with an MTP head: every draft kept, or verified so that nothing is lost."""

import itertools
import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipo.decoding import speculative
from pipo.decoding.generate import generate
from pipo.decoding.mtp_base import VerifyingReader
from pipo.decoding.reader import left_pad
from pipo.decoding.sampling import PresencePenalty
from pipo.errors import UsageError
from pipo.pairing import Slot, Verified

ATTENTION = ("llama", "qwen3")
LENGTHS = (1, 2, 3, 7, 8, 20, 33, 50)
SAMPLING = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module", params=ATTENTION)
def model(request):
    return tiny.drafted(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny.drafted("llama")


def prompts():
    return tiny.prompts(LENGTHS)


def decode(model, rows, method, **kwargs):
    ids, mask = left_pad(rows, 2, "cpu")
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    if method != "regular":
        options |= {"mtp": model.mtp, "verified": method == "speculative"}
    return generate(model.base, input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **options | kwargs)


def tokens(out):
    return [[token for slot in slots for token in slot.tokens] for slots in out.slots]


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"presence_penalty": 0.7},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": list(range(40, 150))},
    ],
)
def test_greedy_speculative_decoding_is_regular_decoding(model, options):
    rows = prompts()
    regular = decode(model, rows, "regular", **options)
    out = decode(model, rows, "speculative", **options)
    assert tokens(out) == tokens(regular) and out.finish_reasons == regular.finish_reasons
    assert torch.equal(out.sequences, regular.sequences)
    assert 0.1 < out.accepted.sum() / out.drafted.sum() < 0.9
    for i, row in enumerate(rows):
        alone = decode(model, [row], "speculative", **options)
        assert tokens(alone) == tokens(decode(model, [row], "regular", **options))
        if "repetition_penalty" not in options:  # transformers' own counts the left pads of a batch
            assert alone.slots[0] == out.slots[i]


@torch.no_grad()
@pytest.mark.parametrize("alone", [True, False])
def test_drafts_after_rejections_are_those_of_the_uncached_trainer_forward(model, alone):
    rows = prompts()[3:5] if alone else prompts()
    for batch in [[row] for row in rows] if alone else [rows]:
        for row, slots in zip(batch, decode(model, batch, "speculative").slots, strict=True):
            text = list(row)
            for slot in slots:
                if slot.draft is not None:  # made from all tokens before it
                    assert model.lm_head(model.mtp_states(torch.tensor([[*text, 0]]))[0, -1]).argmax() == slot.draft
                assert slot.accepted == (slot.draft == slot.token1)
                text += slot.tokens


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_mtp_keeps_what_the_uncached_trainer_forward_drafts(family):
    model = tiny.drafted(family)
    rows = prompts()
    out = decode(model, rows, "mtp", max_new_tokens=9)
    assert (out.steps == 5).all() and (out.drafted == 4).all() and (out.accepted == 4).all()
    for i, row in enumerate(rows[:5]):
        text = list(row)
        for slot in out.slots[i]:
            assert slot.token1 == model.base(input_ids=torch.tensor([text])).logits[0, -1].argmax()
            if slot.draft is not None:
                states = model.mtp_states(torch.tensor([[*text, slot.token1, 0]]))
                assert slot.draft == model.lm_head(states[0, -1]).argmax()
            text += slot.tokens
        assert tokens(decode(model, [row], "mtp", max_new_tokens=9))[0] == tokens(out)[i]


def test_a_rejected_draft_leaves_nothing_in_a_single_rows_caches(llama):
    prompt = prompts()[4]
    reader, fresh = VerifyingReader(llama), VerifyingReader(llama)
    no, yes = torch.tensor([False]), torch.tensor([True])
    reader.prefill([prompt])
    reader.draft_after(torch.tensor([9]), yes)
    reader.step(torch.tensor([[9, 10]]))
    reader.settle(torch.tensor([11]), no)
    reader.draft_after(torch.tensor([11]), no)
    reader.step(torch.tensor([[11, 12]]))
    reader.settle(torch.tensor([12]), yes)
    fresh.prefill([[*prompt, 9, 11, 12]])
    torch.testing.assert_close(reader.hidden[:, -1], fresh.hidden[:, -1], atol=1e-5, rtol=1e-4)
    a, b = (each.draft_after(torch.tensor([13]), yes) for each in (reader, fresh))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert reader.kv_bytes() == fresh.kv_bytes()


def test_steps_are_forwards_of_the_base(llama):
    calls = []
    handle = llama.backbone.register_forward_hook(lambda *_: calls.append(1))
    for prompt in prompts():
        for count in (1, 2, 7, 8):
            calls.clear()
            out = decode(llama, [prompt], "speculative", max_new_tokens=count)
            assert out.steps.item() == len(calls) and len(tokens(out)[0]) == count
            slots = out.slots[0]
            assert slots[0] == Verified(tokens(out)[0][0]) and out.drafted.item() == len(slots) - 1
    handle.remove()


@pytest.mark.parametrize("method", ["mtp", "speculative"])
@pytest.mark.parametrize("count", range(1, 8))
def test_max_new_tokens_counts_real_tokens(llama, method, count):
    rows = prompts()
    out = decode(llama, rows, method, max_new_tokens=count)
    assert all(len(row) == count for row in tokens(out)) and set(out.finish_reasons) == {"length"}
    whole = decode(llama, rows, method)
    assert tokens(out) == [row[:count] for row in tokens(whole)]
    assert method == "speculative" or (out.drafted == count // 2).all()


@pytest.mark.parametrize("method", ["mtp", "speculative"])
def test_eos_counts_wherever_it_falls(llama, method):
    for prompt in prompts()[3:6]:
        free = tokens(decode(llama, [prompt], method))[0]
        for place in range(12):
            eos = free[place]
            end = free.index(eos) + 1
            out = decode(llama, [prompt], method, eos_token_id=eos)
            assert tokens(out)[0] == free[:end] and out.finish_reasons == ["stop"]
            if method == "mtp" and end % 2:
                assert out.slots[0][-1] == Slot(eos)


@pytest.mark.parametrize("method", ["mtp", "speculative"])
def test_draws_are_reproducible_and_independent_of_the_batch(model, method):
    rows = prompts()
    numbers = range(len(rows))
    batch = decode(model, rows, method, generators=seeds(*numbers), **SAMPLING)
    again = decode(model, rows, method, generators=seeds(*numbers), **SAMPLING)
    other = decode(model, rows, method, generators=seeds(*reversed(numbers)), **SAMPLING)
    assert tokens(batch) == tokens(again) != tokens(other)
    for i, row in enumerate(rows):
        assert tokens(decode(model, [row], method, generators=seeds(i), **SAMPLING))[0] == tokens(batch)[i]


# --- the sampled distribution -----------------------------------------------------------------------------------------

PROMPT = [7, 8, 9, 10]
EOS = 1
LENGTH = 3
DRAWS = 4000
PENALTY = 1.5


@torch.no_grad()
def exact(model):
    """Probability of every answer of LENGTH tokens, by transformers' processors on the full vocabulary."""
    processors = LogitsProcessorList(
        [
            PresencePenalty(PENALTY, len(PROMPT)),
            MinLengthLogitsProcessor(len(PROMPT) + LENGTH, EOS),
            TemperatureLogitsWarper(2.0),
            TopKLogitsWarper(4),
            TopPLogitsWarper(0.97),
        ]
    )
    found = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for answer, mass in found.items():
            ids = torch.tensor([[*PROMPT, *answer]])
            p = processors(ids, model.base(input_ids=ids).logits[:, -1].float()).softmax(-1)[0]
            longer |= {(*answer, int(t)): mass * float(p[t]) for t in p.nonzero()}
        found = longer
    return found


def surprise(model, method):
    """How many standard deviations the chi-square of DRAWS answers is above its mean (Wilson and Hilferty)."""
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 2.0, "top_k": 4, "top_p": 0.97, "presence_penalty": PENALTY}
    out = decode(
        model, [PROMPT] * DRAWS, method, max_new_tokens=LENGTH, min_new_tokens=LENGTH, eos_token_id=EOS, **options
    )
    expected = {answer: DRAWS * p for answer, p in exact(model).items()}
    counts = dict.fromkeys(expected, 0)
    for answer in map(tuple, tokens(out)):
        if answer not in counts:
            return math.inf
        counts[answer] += 1
    rare = [answer for answer, number in expected.items() if number < 5]
    cells = [(counts[a], expected[a]) for a in expected if a not in rare]
    cells += [(sum(counts[a] for a in rare), sum(expected[a] for a in rare))] if rare else []
    chi, df = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    return ((chi / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))


def test_sampled_speculative_decoding_has_the_distribution_of_regular_decoding(model):
    assert surprise(model, "regular") < 3.5
    assert surprise(model, "speculative") < 3.5


def always(p, q, draft, u):
    return torch.ones_like(u).bool(), p


def redraws_from_p(p, q, draft, u):
    return verify(p, q, draft, u)[0], p


def ignores_q(p, q, draft, u):
    return u < p.gather(1, draft[:, None]).squeeze(1), verify(p, q, draft, u)[1]


verify = speculative.verify


@pytest.mark.parametrize("wrong", [always, redraws_from_p, ignores_q])
def test_a_wrong_verifier_is_found(llama, wrong, monkeypatch):
    monkeypatch.setattr(speculative, "verify", wrong)
    assert surprise(llama, "speculative") > 8


weights = st.lists(st.integers(0, 8), min_size=5, max_size=5).filter(any)


@given(weights, weights)
def test_what_is_accepted_and_what_is_drawn_instead_make_up_p(a, b):
    p, q = (torch.tensor([x], dtype=torch.float64) / sum(x) for x in (a, b))
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    made = torch.zeros(5, dtype=torch.float64)
    for draft in range(5):
        drafts = torch.full((2000,), draft)
        kept, rest = verify(p.expand(2000, -1), q.expand(2000, -1), drafts, grid)
        share = kept.double().mean()
        made[draft] += q[0, draft] * share
        made += q[0, draft] * (1 - share) * rest[0] / rest[0].sum()
    torch.testing.assert_close(made, p[0], atol=2e-3, rtol=0)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_hybrid_whose_state_cannot_go_back_is_refused_by_name():
    with pytest.raises(
        UsageError, match=r"speculative: .* LinearAttentionLayer states of qwen3_5_text; use regular or"
    ):
        decode(tiny.drafted("qwen3_5"), [[5, 6]], "speculative")


def test_decoding_ends_where_the_models_positions_do(llama):
    rows = [[5] * 505, [5] * 500]
    regular, verified = (decode(llama, rows, method) for method in ("regular", "speculative"))
    assert tokens(regular) == tokens(verified) and [len(row) for row in tokens(regular)] == [8, 13]
    assert set(verified.finish_reasons) == {"length"}
    assert [len(row) for row in tokens(decode(llama, rows, "mtp"))] == [8, 14]


def test_a_seeded_share_of_the_drafts_can_be_forced(llama):
    out = decode(llama, prompts(), "speculative", force_acceptance=1.0)
    assert (out.accepted == out.drafted).all() and (out.steps == 16).all()
    assert decode(llama, prompts(), "speculative", force_acceptance=0.0).accepted.sum() == 0
    with pytest.raises(UsageError, match="no PIPO model"):
        decode(llama, prompts(), "mtp", force_acceptance=1.0)


def test_slots_are_handed_over_as_they_are_made(llama):
    seen = []
    out = decode(llama, prompts()[:3], "speculative", on_slot=lambda row, slot: seen.append((row, slot)))
    for row in range(3):
        assert [slot for i, slot in seen if i == row] == out.slots[row]


def test_rows_of_two_queries_read_grouped_keys_once():
    """The kernel of a step against plain attention, with one position hidden from one row."""
    from pipo.decoding.attention import grouped_sdpa

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, length, 8, generator=draw) for n, length in ((6, 2), (2, 9), (2, 9)))
    mask = torch.ones(2, 1, 2, 9).tril(7).bool()
    mask[1, :, :, 5] = False
    out, _ = grouped_sdpa(torch.nn.Identity(), query, key, value, mask)
    k, v = (x.repeat_interleave(3, dim=1) for x in (key, value))
    scores = (query @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(out, (scores.softmax(-1) @ v).transpose(1, 2))
    assert list(itertools.islice(out.shape, 4)) == [2, 2, 6, 8]
