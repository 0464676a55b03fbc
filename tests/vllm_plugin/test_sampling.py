"""Options of a request mean in pairs what they mean token by token."""

import json
import re
from itertools import pairwise

import pytest
import tiny
import torch
from served import Each, ask, draw, ids, params, reference, tokens

from pipo.decoding.options import GREEDY, Sampling
from pipo.pairing import pad_to_even

PAD, EOS = 2, 1


@pytest.fixture(scope="module")
def answer(local):
    """A prompt and its 24 tokens, drafts kept at every step: the second of a pair stands at odd places."""
    (prompt,) = draw((11,), seed=7)
    return prompt, reference(local, [prompt], threshold=0.0)[0].token_ids


@pytest.mark.parametrize("place", range(8))
def test_a_stop_token_ends_the_answer_at_either_place_of_a_pair(llm, answer, place):
    prompt, expected = answer
    end = expected.index(expected[place]) + 1
    (out,) = ask(llm, [prompt], threshold=0.0, stop_token_ids=[expected[place]])
    assert ids([out]) == [expected[:end]]
    assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason) == ("stop", expected[place])


def test_a_stop_string_ends_the_answer_across_pairs(llm, local, answer):
    prompt, expected = answer
    text = local.tokenizer.decode(expected, skip_special_tokens=True)
    for start in range(4, len(text) - 3):
        stop = text[start : start + 3]
        if "\ufffd" in stop:
            continue
        (out,) = ask(llm, [prompt], threshold=0.0, stop=[stop])
        assert out.outputs[0].text == text[: text.index(stop)] and out.outputs[0].finish_reason == "stop"
        assert out.outputs[0].spec_decode_metrics.to_dict()["num_spec_steps"] > 0


def test_max_tokens_counts_real_tokens(llm, local):
    prompts = draw((8,) * 14, seed=8)
    limits = Each([*range(1, 8)] * 2)
    each = Each([0.0] * 7 + [None] * 7)
    for row, out in enumerate(ask(llm, prompts, threshold=each, max_tokens=limits, ignore_eos=True)):
        expected = reference(local, [prompts[row]], limits[row], threshold=each[row])[0]
        assert ids([out]) == [expected.token_ids] and len(expected.token_ids) == limits[row]
        assert out.outputs[0].finish_reason == "length"
        assert out.outputs[0].spec_decode_metrics.num_draft_tokens == expected.drafted


@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("minimum", [1, 2, 5, 6])
def test_min_tokens_counts_real_tokens(llm, local, threshold, minimum):
    prompts = draw((9, 10, 12), seed=9)
    stops = [*range(3, 60)]
    got = ask(llm, prompts, threshold=threshold, min_tokens=minimum, stop_token_ids=stops)
    for prompt, out in zip(prompts, got, strict=True):
        expected = local.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=24,
            min_new_tokens=minimum,
            eos_token_id=[EOS, *stops],
            confidence_threshold=threshold,
            do_sample=False,
        )
        assert ids([out]) == [expected[0, len(prompt) :].tolist()]


def test_eos_ends_the_answer_unless_it_is_ignored(llm):
    prompts = draw((6, 7), seed=10)
    always = {"threshold": 0.0, "logit_bias": {EOS: 100.0}, "max_tokens": 5}
    assert ids(ask(llm, prompts, **always)) == [[EOS], [EOS]]
    assert ids(ask(llm, prompts, **always, ignore_eos=True)) == [[EOS] * 5] * 2


def test_logit_bias_moves_both_tokens_and_never_lets_pad_in(llm):
    prompts = draw((6, 7), seed=11)
    assert ids(ask(llm, prompts, threshold=0.0, logit_bias={9: 100.0}, max_tokens=6)) == [[9] * 6] * 2
    for row in ids(ask(llm, prompts, threshold=0.0, logit_bias={PAD: 100.0}, ignore_eos=True)):
        assert len(row) == 24 and PAD not in row
    assert ids(ask(llm, prompts, threshold=0.0, allowed_token_ids=[PAD, 7, 8], max_tokens=6, ignore_eos=True)) != [[]]


@pytest.mark.parametrize("penalties", [(1.5, 1.0), (0.0, 1.4), (0.7, 1.2)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_penalties_see_token_1_and_no_pad(llm, local, penalties, threshold):
    presence, repetition = penalties
    prompts = draw((9, 30, 31), seed=12)
    got = ask(
        llm, prompts, threshold=threshold, presence_penalty=presence, repetition_penalty=repetition, ignore_eos=True
    )
    sampling = Sampling(temperature=0, presence_penalty=presence, repetition_penalty=repetition)
    assert ids(got) == tokens(reference(local, prompts, sampling=sampling, threshold=threshold))


def test_a_strong_penalty_leaves_no_token_twice(llm):
    prompts = draw((9, 10), seed=13)
    for row in ids(
        ask(
            llm,
            prompts,
            threshold=0.0,
            frequency_penalty=2.0,
            presence_penalty=2.0,
            max_tokens=60,
            logit_bias={EOS: -100.0},
            temperature=0,
        )
    ):
        assert all(a != b for a, b in pairwise(row))


def test_bad_words_are_seen_across_pairs_and_pads(llm, local, answer):
    prompt, _ = answer
    for threshold in (0.0, 2.0):
        row = reference(local, [prompt], threshold=threshold)[0].token_ids
        for place in (1, 2):
            one = params(threshold=threshold, ignore_eos=True)
            one._bad_words_token_ids = [row[place - 1 : place + 1]]
            (out,) = llm.generate([{"prompt_token_ids": prompt}], [one], use_tqdm=False)
            got = ids([out])[0]
            assert got[:place] == row[:place] and got[place] != row[place]


@pytest.mark.parametrize("threshold", [0.0, None, 2.0])
def test_a_seed_draws_the_same_alone_and_in_any_batch(llm, threshold):
    """Also where the prompt is read in chunks, beside requests that draft and that do not."""
    (prompt,) = draw((301,), seed=14)
    mine = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 5, "ignore_eos": True}
    (alone,) = ids(ask(llm, [prompt], threshold=threshold, **mine))
    llm.reset_prefix_cache()
    others = draw((3, 290, 64, 17, 40), seed=15)
    fields = mine | {"seed": Each([1, 2, 5, 3, None, 4]), "threshold": Each([0.0, 2.0, threshold, 0.5, None, 2.0])}
    batch = ids(ask(llm, [*others[:2], prompt, *others[2:]], **fields))
    assert batch[2] == alone
    assert ids(ask(llm, [prompt], threshold=threshold, **mine | {"seed": 6})) != [alone]


def test_n_answers_are_those_of_their_own_seeds(llm):
    (prompt,) = draw((12,), seed=16)
    mine = {"threshold": 0.0, "temperature": 1.0, "ignore_eos": True}
    (out,) = ask(llm, [prompt], n=3, seed=20, **mine)
    answers = [list(one.token_ids) for one in out.outputs]
    assert answers == ids(ask(llm, [prompt] * 3, seed=Each([20, 21, 22]), **mine))
    assert len({tuple(one) for one in answers}) == 3


@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
def test_logprobs_are_the_models_one_for_each_real_token(llm, local, threshold):
    (prompt,) = draw((13,), seed=17)
    (out,) = ask(llm, [prompt], threshold=threshold, logprobs=3, ignore_eos=True)
    slots = reference(local, [prompt], threshold=threshold)[0].slots
    even = pad_to_even(prompt, PAD)
    pairs = [token for slot in slots for token in slot.pair(PAD)]
    with torch.no_grad():
        model = local.model(torch.tensor([even + pairs]), return_logits=True)
    start = len(even) // 2 - 1
    rows = []
    for i, slot in enumerate(slots):
        rows.append(model.logits[0, start + i])
        if slot.accepted:
            rows.append(model.mtp_logits[0, start + i])
    logits = torch.stack(rows).index_fill(1, torch.tensor([PAD]), float("-inf"))
    expected = logits.log_softmax(-1)
    given = out.outputs[0].logprobs
    assert len(given) == len(out.outputs[0].token_ids) == len(expected) == 24
    for row, token, line in zip(given, out.outputs[0].token_ids, expected, strict=True):
        assert next(iter(row)) == token and set(line.topk(3).indices.tolist()) <= set(row)
        for other, logprob in row.items():
            assert logprob.logprob == pytest.approx(float(line[other]), abs=1e-4)


def test_structured_output_is_kept_to_beside_a_request_without(llm, local):
    from vllm.sampling_params import StructuredOutputsParams

    prompts = draw((5, 6, 7), seed=18)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = Each(
        [
            StructuredOutputsParams(regex=r"(yes|no) [0-9]{3}"),
            StructuredOutputsParams(json=schema, disable_any_whitespace=True),
            None,
        ]
    )
    blanks = {local.tokenizer.convert_tokens_to_ids(blank): -100.0 for blank in "ĠĊĉč"}  # legal in JSON, and endless
    fields = {"logit_bias": Each([{}, blanks, {}]), "ignore_eos": Each([False, False, True])}
    got = ask(llm, prompts, threshold=0.0, structured_outputs=wanted, max_tokens=60, **fields)
    texts = [local.tokenizer.decode(row, skip_special_tokens=True) for row in ids(got)]
    assert re.fullmatch(r"(yes|no) [0-9]{3}", texts[0])
    assert isinstance(json.loads(texts[1])["a"], int)
    assert ids(got[2:]) == tokens(reference(local, prompts[2:], 60, threshold=0.0))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_forced_acceptance_is_the_local_coin(llm, local, rate):
    (prompt,) = draw((8,), seed=19)
    (out,) = ask(llm, [prompt], force=rate, threshold=2.0, ignore_eos=True, max_tokens=60)
    expected = local.complete([prompt], sampling=GREEDY, max_new_tokens=60, force_acceptance=rate, ignore_eos=True)[0]
    assert ids([out]) == [expected.token_ids]
    assert out.outputs[0].spec_decode_metrics.num_draft_tokens == expected.drafted > 0
    assert max(expected.token_ids) < tiny.VOCAB
