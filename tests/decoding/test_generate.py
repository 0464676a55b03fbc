"""Decoding: cached = uncached, batched = alone, for every family."""

import itertools

import pytest
import tiny
import torch
from decoded import LENGTHS, THRESHOLDS, decode, new_tokens, prompts, uncached
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from pipo.decoding.generate import generate
from pipo.decoding.reader import PairReader, left_pad
from pipo.errors import UsageError
from pipo.pairing import Slot, pad_to_even


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return tiny.pipo(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny.pipo("llama")


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_cached_greedy_is_the_argmax_of_the_uncached_trainer_forward(model, threshold):
    for prompt in prompts()[:5]:
        assert new_tokens(decode(model, [prompt], confidence_threshold=threshold), 0) == uncached(
            model, prompt, threshold, 15
        )


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_eight_ragged_prompts_are_eight_single_runs(model, threshold):
    rows = prompts()
    batch = decode(model, rows, confidence_threshold=threshold)
    for i, prompt in enumerate(rows):
        alone = decode(model, [prompt], confidence_threshold=threshold)
        assert new_tokens(batch, i) == new_tokens(alone, 0)
        assert (batch.steps[i], batch.drafted[i], batch.accepted[i]) == (
            alone.steps[0],
            alone.drafted[0],
            alone.accepted[0],
        )


def test_thresholds_in_between_accept_some_drafts(model):
    out = decode(model, prompts(), confidence_threshold=0.5)
    assert 0 < out.accepted.sum() < out.drafted.sum()


def test_rows_that_end_early_do_not_disturb_the_others(llama):
    rows = prompts()
    eos = new_tokens(decode(llama, rows, confidence_threshold=0.5), 2)[3]
    batch = decode(llama, rows, confidence_threshold=0.5, eos_token_id=eos)
    alone = [decode(llama, [row], confidence_threshold=0.5, eos_token_id=eos) for row in rows]
    assert len({len(new_tokens(batch, i)) for i in range(len(rows))}) > 1
    assert [new_tokens(batch, i) for i in range(len(rows))] == [new_tokens(one, 0) for one in alone]


def test_nothing_is_rolled_back_on_rejection(model):
    """Every cache and recurrent state after a rejection is the one that an uncached read of the same pairs gives."""
    prompt = prompts()[4]
    reader, fresh = PairReader(model), PairReader(model)
    hidden = reader.prefill([prompt])
    pairs = [[9, 2], [10, 11], [12, 2], [13, 14]]
    for pair in pairs:
        reader.draft(torch.tensor(pair[:1]))
        hidden = reader.step(torch.tensor([pair]))
    whole = [*pad_to_even(prompt, 2), *itertools.chain(*pairs)]
    expected = fresh.prefill([whole])
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)
    a, b = reader.draft(torch.tensor([15])), fresh.draft(torch.tensor([15]))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert reader.cache.get_seq_length() == reader.mtp_cache.get_seq_length() == len(whole) // 2


def test_forced_acceptance_is_a_coin_of_the_row_and_not_of_the_batch(llama):
    rows = prompts()[:3]

    def run(*chosen):
        generators = [torch.Generator().manual_seed(i) for i in chosen]
        return decode(llama, [rows[i] for i in chosen], force_acceptance=0.5, max_new_tokens=30, generators=generators)

    together = run(0, 1, 2)
    for i in range(3):
        assert new_tokens(together, i) == new_tokens(run(i), 0)
    kept = [[slot.accepted for slot in slots] for slots in together.slots]
    assert kept[0] != kept[1] != kept[2] and 0.2 < sum(map(sum, kept)) / sum(map(len, kept)) < 0.8


def test_the_last_long_answers_do_not_hold_a_batch_up(llama):
    """Three of four rows end early: the fourth may take twice their steps, and no row that ended is another for it."""

    class Early(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids[0, width - 1] != 9 and input_ids.shape[1] >= width + 8])

    rows = [[5, 6, 7], [8, 9], [9, 10], [11, 12, 13, 14]]
    width = max(map(len, rows))
    same = {"max_new_tokens": 60, "confidence_threshold": 0.5, "stopping_criteria": StoppingCriteriaList([Early()])}
    whole, cut = decode(llama, rows, **same), decode(llama, rows, **same, tail=2.0)
    assert whole.finish_reasons == cut.finish_reasons == ["stop", "length", "stop", "stop"]
    assert len(new_tokens(whole, 1)) == 60
    others = max(len(cut.slots[i]) for i in (0, 2, 3))
    assert len(cut.slots[1]) == 2 * others < len(whole.slots[1])
    for i in range(4):
        assert new_tokens(cut, i) == new_tokens(whole, i)[: len(new_tokens(cut, i))]


def test_seeded_sampling_is_reproducible_and_independent_of_the_batch(llama):
    rows = prompts()[:4]

    def seeds(*numbers):
        return [torch.Generator().manual_seed(n) for n in numbers]

    sampling = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "confidence_threshold": 0.5}
    batch = decode(llama, rows, generators=seeds(1, 2, 3, 4), **sampling)
    again = decode(llama, rows, generators=seeds(1, 2, 3, 4), **sampling)
    alone = [decode(llama, [row], generators=seeds(i + 1), **sampling) for i, row in enumerate(rows)]
    assert torch.equal(batch.sequences, again.sequences)
    assert [new_tokens(batch, i) for i in range(4)] == [new_tokens(one, 0) for one in alone]
    other = decode(llama, rows, generators=seeds(5, 6, 7, 8), **sampling)
    assert not torch.equal(batch.sequences, other.sequences)
    torch.manual_seed(0)
    first = decode(llama, rows, **sampling)
    torch.manual_seed(0)
    assert torch.equal(first.sequences, decode(llama, rows, **sampling).sequences)


@pytest.mark.parametrize("count", range(1, 8))
def test_max_new_tokens_counts_real_tokens_and_cuts_a_pair(llama, count):
    for threshold in THRESHOLDS:
        out = decode(llama, prompts()[:2], max_new_tokens=count, confidence_threshold=threshold)
        for row in range(2):
            tokens = new_tokens(out, row)
            assert len(tokens) == count and llama.config.pad_token_id not in tokens
            assert out.finish_reasons[row] == "length"
            last = out.slots[row][-1]
            cut = len(tokens) - len(last.tokens) == count - 1
            assert not cut or last.draft is None  # neither drafted nor accepted


def test_eos_counts_wherever_it_falls_in_a_pair(llama):
    prompt = prompts()[3]
    free = decode(llama, [prompt], confidence_threshold=0.0)
    tokens = new_tokens(free, 0)
    for place in range(8):
        eos = tokens[place]
        end = tokens.index(eos) + 1
        out = decode(llama, [prompt], confidence_threshold=0.0, eos_token_id=eos)
        assert new_tokens(out, 0) == tokens[:end] and out.finish_reasons == ["stop"]
        assert out.drafted.item() == out.accepted.item() == end // 2
        if end % 2:
            assert out.slots[0][-1] == Slot(eos)


def test_stop_strings_count_across_pairs(llama):
    tokenizer = tiny.tokenizer()
    prompt = prompts()[3]
    tokens = new_tokens(decode(llama, [prompt], confidence_threshold=0.0), 0)
    for place in range(1, 6):
        text = tokenizer.decode(tokens[place : place + 2])
        if "\N{REPLACEMENT CHARACTER}" in text:
            continue
        out = decode(llama, [prompt], confidence_threshold=0.0, stop_strings=[text], tokenizer=tokenizer)
        assert text in tokenizer.decode(new_tokens(out, 0)) and len(new_tokens(out, 0)) <= place + 2


def test_penalties_see_token_1_and_never_pad(llama):
    """With a huge presence penalty no token can come twice, within a pair neither."""
    for threshold in THRESHOLDS:
        out = decode(llama, prompts(), confidence_threshold=threshold, presence_penalty=1e4, max_new_tokens=40)
        for row in range(len(LENGTHS)):
            tokens = new_tokens(out, row)
            assert len(set(tokens)) == len(tokens) == 40
    out = decode(llama, prompts(), confidence_threshold=0.0, no_repeat_ngram_size=2, max_new_tokens=40)
    for row, prompt in enumerate(prompts()):
        text = prompt + new_tokens(out, row)
        bigrams = list(itertools.pairwise(text))
        new = bigrams[len(prompt) - 1 :]
        assert len(set(new)) == len(new)


def test_custom_stopping_criteria_see_every_real_token(llama):
    class Watch(StoppingCriteria):
        seen: list[list[int]] = []

        def __call__(self, input_ids, scores, **kwargs):
            self.seen.append(input_ids[0].tolist())
            return torch.tensor([False])

    prompt = prompts()[4]
    out = decode(llama, [prompt], confidence_threshold=0.5, stopping_criteria=StoppingCriteriaList([Watch()]))
    tokens = new_tokens(out, 0)
    assert Watch.seen == [prompt + tokens[: i + 1] for i in range(len(tokens))]


def test_streamers_get_real_tokens_in_order(llama, capsys):
    tokenizer = tiny.tokenizer()
    out = decode(llama, [prompts()[4]], confidence_threshold=0.5, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == tokenizer.decode(new_tokens(out, 0)).strip()


def test_sampling_is_transformers_distribution():
    """Top-k before the rest, on k candidates, draws from the distribution that the full vocabulary gives."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from pipo.decoding.sampling import Sampler

    processors = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(8), TopPLogitsWarper(0.9)])
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    history = torch.tensor([[1, 2]])
    expected = processors(history, logits.clone()).softmax(-1)[0]
    sampler = Sampler(processors, do_sample=True, generators=[torch.Generator().manual_seed(3)])
    draws = torch.cat([sampler(logits, [history], [0]) for _ in range(4000)])
    measured = torch.bincount(draws, minlength=50) / len(draws)
    assert (measured[expected == 0] == 0).all()
    torch.testing.assert_close(measured, expected, atol=0.03, rtol=0)


def test_counts(llama):
    out = decode(llama, prompts(), confidence_threshold=0.5)
    for row, slots in enumerate(out.slots):
        assert out.steps[row] == len(slots)
        assert out.drafted[row] == len(out.confidences[row])
        assert len(new_tokens(out, row)) == out.steps[row] + out.accepted[row]
        assert all(0 <= c <= 1 for c in out.confidences[row])
    none = decode(llama, prompts(), confidence_threshold=1.5)
    assert none.drafted.sum() == 0 and (none.steps == 15).all()


def test_sequences_hold_prompt_and_real_tokens_padded_at_the_right(llama):
    rows = prompts()[:3]
    eos = new_tokens(decode(llama, rows, confidence_threshold=0.5), 0)[2]
    out = decode(llama, rows, confidence_threshold=0.5, eos_token_id=eos)
    width = max(len(row) for row in rows)
    for row, prompt in enumerate(rows):
        tokens = new_tokens(out, row)
        sequence = out.sequences[row].tolist()
        assert sequence[width - len(prompt) : width + len(tokens)] == prompt + tokens
        assert set(sequence[width + len(tokens) :]) <= {llama.config.pad_token_id}


def test_regular_decoding_is_transformers_greedy(model):
    """The same loop without drafts, on the uncompressed model."""
    base = tiny.base({"llama": "llama", "qwen3": "qwen3", "qwen3_5_text": "qwen3_5"}[model.backbone.config.model_type])
    rows = prompts()
    ids, mask = left_pad(rows, 2, "cpu")
    options = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 2,
    }
    assert torch.equal(generate(base, input_ids=ids, **options), base.generate(input_ids=ids, **options))


def test_cache_bytes_are_those_of_every_row_at_its_end(llama):
    """Equal prompts whose rows end at different steps: a batch has the bytes of its rows one by one."""
    rows = [prompts()[5], prompts()[5][::-1], [*prompts()[5][1:], 9]]
    batch = decode(llama, rows, confidence_threshold=0.5)
    assert len(set(batch.steps.tolist())) > 1
    alone = sum(decode(llama, [row], confidence_threshold=0.5).kv_bytes for row in rows)
    assert batch.kv_bytes == alone


def test_forced_acceptance_is_a_seeded_share(llama):
    out = decode(llama, prompts(), force_acceptance=1.0)
    assert (out.accepted == out.drafted).all() and (out.steps == 8).all()
    assert decode(llama, prompts(), force_acceptance=0.0).accepted.sum() == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"confidence_threshold": -1.0}, "confidence_threshold"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold"),
        ({"num_beams": 3}, "num_beams"),
        ({"output_scores": True}, "output_scores"),
        ({"use_cache": False}, "use_cache"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
    ],
)
def test_options_that_do_not_work_are_refused_by_name(llama, options, field):
    with pytest.raises(UsageError, match=field):
        decode(llama, prompts()[:1], **options)


def test_bad_prompts_are_refused(llama):
    with pytest.raises(UsageError, match="PAD"):
        decode(llama, [[5, 2, 6]])
    with pytest.raises(UsageError, match="positions"):
        decode(llama, [[5] * 1100])
    with pytest.raises(UsageError, match="attention_mask"):
        llama.generate(input_ids=torch.tensor([[5, 6, 7]]), attention_mask=torch.tensor([[1, 1, 0]]), max_new_tokens=2)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_decoding_ends_where_the_models_positions_do(llama, threshold):
    prompt = [5] * 1015  # 508 pairs of 512 positions
    out = decode(llama, [prompt, prompt[:1000]], confidence_threshold=threshold, max_new_tokens=40)
    assert len(new_tokens(out, 0)) == (10 if threshold == 0 else 5)
    assert len(new_tokens(out, 1)) == (26 if threshold == 0 else 13)
    assert out.finish_reasons == ["length", "length"]
