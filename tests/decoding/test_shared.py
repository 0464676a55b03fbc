"""Continuous batching: whoever joins and leaves, every sequence decodes as it does alone."""

import random

import pytest
import tiny
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from pipo.decoding.attention import fast_attention
from pipo.decoding.generate import generate
from pipo.decoding.sampling import FrequencyPenalty, PresencePenalty, Sampler
from pipo.decoding.shared import Member, SharedLoop
from pipo.pairing import Slot

LENGTHS = (1, 2, 3, 7, 8, 20, 33, 50, 90, 5)
THRESHOLDS = (0.0, 0.5, 0.3, 1.5)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return tiny.pipo(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny.pipo("llama")


def prompts():
    return tiny.prompts(LENGTHS)


def member(prompt, count, threshold=0.5, sampler=None, eos=None, **options):
    return Member(
        Member.room(prompt, len(prompt) + count, "cpu"),
        len(prompt),
        prompt=prompt,
        end=len(prompt) + count,
        sampler=sampler or Sampler(LogitsProcessorList(), do_sample=False),
        threshold=threshold,
        stops=lambda token: token == eos,
        emitted=lambda slot: None,
        **options,
    )


@torch.no_grad()
def drain(model, members, rng=None, watch=None):
    """Admit the members one by one, at random moments, at most four at a time. `watch` is called after every move."""
    loop, waiting = SharedLoop(model), list(members)
    while waiting or loop.members:
        if waiting and len(loop.members) < 4 and (rng is None or rng.random() < 0.5):
            loop.admit(waiting.pop(0))
        else:
            loop.step()
        if watch is not None:
            watch(loop)
    return loop


def plans(rng):
    return [(prompt, rng.choice((1, 2, 3, 6, 17, 30)), rng.choice(THRESHOLDS)) for prompt in prompts()]


@pytest.mark.parametrize("seed", range(2))
def test_whoever_joins_and_leaves_each_decodes_as_alone(model, seed):
    rng = random.Random(seed)
    wanted = plans(rng)
    members = [member(*plan) for plan in wanted]
    drain(model, members, rng)
    for one, (prompt, count, threshold) in zip(members, wanted, strict=True):
        ids = torch.tensor([prompt])
        alone = generate(
            model,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            eos_token_id=None,
            do_sample=False,
            confidence_threshold=threshold,
            return_dict_in_generate=True,
        )
        assert one.tokens == [token for slot in alone.slots[0] for token in slot.tokens]
        assert [slot.accepted for slot in one.slots] == [slot.accepted for slot in alone.slots[0]]
        assert [slot.draft is None for slot in one.slots] == [slot.draft is None for slot in alone.slots[0]]
        assert one.finish_reason == "length" and len(one.tokens) == count


def test_an_uncompressed_model_decodes_as_alone():
    base = tiny.base("llama")
    members = [member(prompt, 12) for prompt in prompts()]
    drain(base, members, random.Random(0))
    for one in members:
        ids = torch.tensor([one.prompt])
        alone = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, eos_token_id=None)
        assert one.tokens == alone[0, len(one.prompt) :].tolist()
        assert all(slot == Slot(slot.token1) for slot in one.slots)


def test_nothing_is_kept_of_those_that_left(model):
    """The cache is as wide as the longest member that is still there."""
    long, short = member(prompts()[8], 3), member(prompts()[1], 40)
    widths = []

    def watch(loop):
        if [row is short for row in loop.members] == [True]:
            widths.append((loop.reader.cache.get_seq_length(), loop.reader.mtp_cache.get_seq_length()))

    loop = drain(model, [long, short], watch=watch)
    read = len(short.prompt) // 2 + len(short.slots) - 1  # the last slot is never read
    assert len(widths) > 10
    assert widths[-1] == (read - 1, read - 1)  # before the last step, and nothing of the long one's 45 pairs
    assert loop.reader.kv_bytes() == 0


def test_a_member_that_is_called_off_leaves_the_others_alone(llama):
    rows = [member(prompt, 20) for prompt in prompts()[:3]]
    moves = []

    def watch(loop):
        moves.append(loop)
        if len(moves) == 6:
            rows[1].finish_reason = "abort"

    loop = drain(llama, rows, watch=watch)
    assert 0 < len(rows[1].tokens) < 20
    alone = [member(prompt, 20) for prompt in prompts()[:3]]
    for one in alone:
        drain(llama, [one])
    assert [rows[i].tokens for i in (0, 2)] == [alone[i].tokens for i in (0, 2)]
    assert rows[1].tokens == alone[1].tokens[: len(rows[1].tokens)]
    assert not loop.members


def samplers(prompt, seed):
    """Drawn by a generator of its own, with penalties."""
    chain = [
        PresencePenalty(0.5, len(prompt)),
        FrequencyPenalty(0.3, len(prompt)),
        TemperatureLogitsWarper(1.3),
        TopKLogitsWarper(40),
    ]
    return Sampler(LogitsProcessorList(chain), True, [torch.Generator().manual_seed(seed)])


def test_seeded_draws_do_not_depend_on_the_batch(llama):
    def fresh():
        return [member(p, 20, THRESHOLDS[i % 4], samplers(p, i)) for i, p in enumerate(prompts())]

    together, alone = fresh(), fresh()
    drain(llama, together, random.Random(0))
    for one in alone:
        drain(llama, [one])
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_frequency_penalty_counts_and_leaves_the_prompt_out():
    scores = torch.zeros(1, 6)
    out = FrequencyPenalty(0.5, 2)(torch.tensor([[4, 4, 1, 3, 1]]), scores)
    assert out.tolist() == [[0.0, -1.0, 0.0, -0.5, 0.0, 0.0]]


@torch.no_grad()
def test_one_logprob_for_each_real_token(llama):
    """The trainer's forward says what they have to be; rejected drafts and PAD have none."""
    prompt, pad = prompts()[6], llama.config.pad_token_id
    one = member(prompt, 21, 0.5, top_logprobs=4)
    drain(llama, [one, member(prompts()[2], 30, 0.0)])
    assert 0 < sum(slot.accepted for slot in one.slots) < len(one.slots)
    assert [entry.token for entry in one.logprobs] == one.tokens
    ids, entries = [*prompt, pad], iter(one.logprobs)
    for slot in one.slots:
        full = llama(input_ids=torch.tensor([[*ids, slot.token1, 5]]), return_logits=True)
        for logits, token in zip((full.logits[0, -2], full.mtp_logits[0, -1]), slot.tokens, strict=False):
            logits[pad] = float("-inf")
            entry, expected = next(entries), torch.log_softmax(logits, -1)
            assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-4)
            assert [i for i, _ in entry.top] == expected.topk(4).indices.tolist()
            assert entry.top[0] == (token, entry.logprob)  # greedy
        ids += slot.pair(pad)


def test_decoding_ends_where_the_models_positions_do(llama):
    one = member([5] * 1015, 40, 2.0)  # 508 pairs of 512 positions
    drain(llama, [one])
    assert len(one.tokens) == 5 and one.finish_reason == "length"


def test_attention_is_the_loops_own(llama):
    with fast_attention(llama.backbone.config, llama.mtp.config):
        rows = [member(prompt, 10) for prompt in prompts()[:4]]
        drain(llama, rows)
    plain = [member(prompt, 10) for prompt in prompts()[:4]]
    drain(llama, plain)
    assert [row.tokens for row in rows] == [row.tokens for row in plain]
