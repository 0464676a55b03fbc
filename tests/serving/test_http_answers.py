"""Answers over HTTP are the local engine's, however they are asked for and whatever runs beside them."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from asking import WORDS, expected, gauge, question, sse, until

from pipo.decoding.options import Sampling

MESSAGES = [{"role": "user", "content": "what is so"}]


def ask(client, count=20, **options):
    """A chat, greedy unless told."""
    options = {"temperature": 0, "max_tokens": count, "messages": MESSAGES} | options
    return client.chat.completions.create(model="tiny", **options)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.3, 1.5])
def test_a_chat_is_the_engines_greedy_answer(client, engine, threshold):
    wanted = expected(engine, engine.encode(MESSAGES), 20, threshold)
    extra = {} if threshold is None else {"confidence_threshold": threshold}
    reply = ask(client, extra_body=extra)
    (choice,) = reply.choices
    assert choice.message.content == wanted.text
    assert choice.finish_reason == wanted.finish_reason
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (wanted.prompt_tokens, len(wanted.token_ids))
    assert reply.usage.total_tokens == wanted.prompt_tokens + len(wanted.token_ids)
    stats = reply.metrics["speculative_decoding"]
    assert stats == {
        "mean_acceptance_length": wanted.tokens_per_step,
        "draft_acceptance_rate": wanted.acceptance_rate or 0.0,
        "acceptance_histogram": [wanted.steps - wanted.accepted, wanted.accepted],
        "num_spec_steps": wanted.steps,
        "num_accepted_draft_tokens": wanted.accepted,
        "num_draft_tokens": wanted.drafted,
        "num_spec_tokens": 1,
    }
    assert reply.metrics["pipo"] == {"steps": wanted.steps, "tokens_per_step": wanted.tokens_per_step}
    assert reply.metrics["time_to_first_token_ms"] >= reply.metrics["queue_time_ms"] >= 0


def test_the_stored_threshold_accepts_some_drafts(client):
    """Else the tests here would not see rejected drafts."""
    stats = ask(client, 40).metrics["speculative_decoding"]
    assert 0 < stats["num_accepted_draft_tokens"] < stats["num_draft_tokens"]


@pytest.mark.parametrize("count", range(1, 8))
def test_max_tokens_counts_real_tokens_and_cuts_a_pair(client, engine, count):
    for threshold in (0.0, 0.5, 1.5):
        reply = ask(client, count, extra_body={"confidence_threshold": threshold})
        wanted = expected(engine, engine.encode(MESSAGES), count, threshold)
        assert reply.choices[0].message.content == wanted.text
        assert reply.usage.completion_tokens == count
        assert reply.choices[0].finish_reason == "length"
    assert ask(client, None, max_completion_tokens=count).usage.completion_tokens == count


def test_a_stream_is_the_whole_answer_in_pieces(client, engine):
    wanted = expected(engine, engine.encode(MESSAGES), 30)
    chunks = list(ask(client, 30, stream=True, stream_options={"include_usage": True}))
    *steps, last = chunks
    assert "".join(chunk.choices[0].delta.content for chunk in steps) == wanted.text
    assert [chunk.choices[0].delta.role for chunk in steps] == ["assistant"] + [None] * (len(steps) - 1)
    assert [chunk.choices[0].finish_reason for chunk in steps] == [None] * (len(steps) - 1) + ["length"]
    assert len(steps) <= wanted.steps
    assert last.choices == [] and last.usage.completion_tokens == 30
    assert last.metrics["speculative_decoding"]["num_accepted_draft_tokens"] == wanted.accepted
    assert {chunk.id for chunk in chunks} == {last.id}


def test_a_stream_without_usage_has_none(client):
    chunks = list(ask(client, 3, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_both_tokens_of_a_pair_leave_together_with_what_was_drafted(http, engine):
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 40, "stream": True}
    body["stream_options"] = {"include_drafts": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        choices = [chunk["choices"][0] for chunk in sse(reply.iter_lines())]
    wanted = expected(engine, engine.encode(MESSAGES), 40)
    drafts = [choice["pipo"] for choice in choices]
    assert len(drafts) == wanted.steps
    assert [d["steps"] for d in drafts] == list(range(1, wanted.steps + 1))
    counts = [0, *(d["completion_tokens"] for d in drafts)]
    assert [b - a for a, b in pairwise(counts)] == [len(slot.tokens) for slot in wanted.slots]
    for choice in choices:
        assert "".join(token["text"] for token in choice["pipo"]["tokens"]) == choice["delta"]["content"]
    tokens = [token for d in drafts for token in d["tokens"]]
    assert len(tokens) == 40
    assert [t["confidence"] for t in tokens if t["draft"]] == pytest.approx(
        [slot.confidence for slot in wanted.slots if slot.accepted], abs=1e-4
    )
    rejected = [(slot.draft, slot.confidence) for slot in wanted.slots if slot.draft is not None and not slot.accepted]
    shown = [draft for d in drafts for draft in d["rejected"]]
    assert [draft["text"] for draft in shown] == [engine.tokenizer.decode([draft]) for draft, _ in rejected]
    assert [draft["confidence"] for draft in shown] == pytest.approx([c for _, c in rejected], abs=1e-4)


def test_prompts_of_every_kind(client, engine):
    ids = [[5, 6, 7, 8, 9], [30, 31], [40]]
    texts = ["how many", "what and so"]
    for prompts in (texts[0], texts, ids[0], ids):
        many = prompts if isinstance(prompts, list) and not isinstance(prompts[0], int) else [prompts]
        encoded = [p if isinstance(p, list) else engine.tokenizer(p)["input_ids"] for p in many]
        wanted = [expected(engine, prompt, 9) for prompt in encoded]
        reply = client.completions.create(model="tiny", prompt=prompts, max_tokens=9, temperature=0)
        assert [choice.text for choice in reply.choices] == [one.text for one in wanted]
        assert [choice.index for choice in reply.choices] == list(range(len(wanted)))
        assert reply.usage.prompt_tokens == sum(map(len, encoded))
        assert reply.usage.completion_tokens == sum(len(one.token_ids) for one in wanted)
    assert client.completions.create(model="tiny", prompt="how", temperature=0).usage.completion_tokens <= 16


def test_streamed_prompts_and_echo(client, engine):
    prompts = ["how many", "what and so"]
    wanted = [p + expected(engine, engine.tokenizer(p)["input_ids"], 9).text for p in prompts]
    options = {"model": "tiny", "prompt": prompts, "max_tokens": 9, "temperature": 0, "echo": True}
    assert [choice.text for choice in client.completions.create(**options).choices] == wanted
    texts = ["", ""]
    for chunk in client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == wanted


def test_several_answers_with_a_seed(client, engine):
    sampling = {"temperature": 1.2, "top_p": 0.9, "presence_penalty": 0.3}
    extra = {"top_k": 30, "repetition_penalty": 1.1}
    options = {"seed": 7, "n": 3, **sampling}
    reply = ask(client, 15, **options, extra_body=extra)
    texts = [choice.message.content for choice in reply.choices]
    alone = [
        expected(engine, engine.encode(MESSAGES), 15, sampling=Sampling(**sampling, **extra), seeds=[seed]).text
        for seed in (7, 8, 9)
    ]
    assert texts == alone and len(set(texts)) == 3
    assert reply.metrics is None  # they are of a single answer
    assert [c.message.content for c in ask(client, 15, **options, extra_body=extra).choices] == texts
    streamed = [""] * 3
    for chunk in ask(client, 15, **options, extra_body=extra, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert streamed == texts
    assert len({ask(client, 15, temperature=1.5).choices[0].message.content for _ in range(4)}) > 1


def test_options_change_what_is_drawn(client, engine):
    free = ask(client, 30, logprobs=True).choices[0]
    tokens = [entry.token for entry in free.logprobs.content]
    assert ask(client, 30, temperature=5.0, extra_body={"top_k": 1}).choices[0].message.content == free.message.content
    for one in ({"min_p": 1.0}, {"top_p": 1e-6}):
        extra = {key: value for key, value in one.items() if key == "min_p"}
        plain = {key: value for key, value in one.items() if key != "min_p"}
        drawn = ask(client, 30, **{"temperature": 2.0} | plain, extra_body=extra).choices[0]
        assert drawn.message.content == free.message.content
    often = max(tokens, key=tokens.count)
    assert tokens.count(often) > 3
    for penalties in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        other = ask(client, 30, logprobs=True, **penalties).choices[0]
        assert [e.token for e in other.logprobs.content].count(often) < tokens.count(often)
    (wanted,) = engine.tokenizer("j", add_special_tokens=False)["input_ids"]
    biased = ask(client, 8, logit_bias={str(wanted): 100})
    assert biased.choices[0].message.content == "j" * 8


@pytest.mark.parametrize("repetition", [0.5, 3.0])
def test_penalties_follow_each_other_as_in_the_engine(client, engine, repetition):
    reply = ask(client, 60, presence_penalty=2.0, extra_body={"repetition_penalty": repetition})
    sampling = Sampling(temperature=0, presence_penalty=2.0, repetition_penalty=repetition)
    assert reply.choices[0].message.content == expected(engine, engine.encode(MESSAGES), 60, sampling=sampling).text


def test_the_repetition_penalty_is_the_engines(client, engine):
    reply = ask(client, 30, extra_body={"repetition_penalty": 1.5})
    sampling = Sampling(temperature=0, repetition_penalty=1.5)
    assert reply.choices[0].message.content == expected(engine, engine.encode(MESSAGES), 30, sampling=sampling).text


@torch.no_grad()
def test_one_logprob_for_each_real_token(client, engine):
    """Against the trainer's forward over the pairs that were read."""
    reply = ask(client, 21, logprobs=True, top_logprobs=3)
    wanted = expected(engine, engine.encode(MESSAGES), 21)
    entries = reply.choices[0].logprobs.content
    assert [entry.token for entry in entries] == [engine.tokenizer.decode([token]) for token in wanted.token_ids]
    model, pad = engine.model, engine.model.config.pad_token_id
    ids, values = engine.encode(MESSAGES), []
    ids += [pad] * (len(ids) % 2)
    for slot in wanted.slots:
        full = model(input_ids=torch.tensor([[*ids, slot.token1, 5]]), return_logits=True)
        for logits, token in zip((full.logits[0, -2], full.mtp_logits[0, -1]), slot.tokens, strict=False):
            values.append(float(torch.log_softmax(logits.index_fill(0, torch.tensor([pad]), -torch.inf), -1)[token]))
        ids += slot.pair(pad)
    assert [entry.logprob for entry in entries] == pytest.approx(values, abs=1e-4)
    for entry in entries:
        assert [best.logprob for best in entry.top_logprobs] == sorted(b.logprob for b in entry.top_logprobs)[::-1]
        assert entry.top_logprobs[0].token == entry.token and len(entry.top_logprobs) == 3  # greedy
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token


def test_logprobs_of_streams_and_texts(client):
    whole = ask(client, 15, logprobs=True).choices[0].logprobs.content
    chunks = list(ask(client, 15, logprobs=True, stream=True))
    streamed = [entry for chunk in chunks for entry in chunk.choices[0].logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in whole] and len(whole) == 15
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in whole], abs=1e-4)
    options = {"model": "tiny", "prompt": "how many", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    choice = client.completions.create(**options).choices[0]
    text = choice.logprobs
    assert len(text.tokens) == len(text.token_logprobs) == len(text.top_logprobs) == len(text.text_offset) == 12
    offsets = [
        offset
        for c in client.completions.create(**options, stream=True)
        for offset in c.choices[0].logprobs.text_offset
    ]
    assert offsets == text.text_offset == sorted(offsets)
    assert any("\N{REPLACEMENT CHARACTER}" in token for token in text.tokens)  # a part of a character
    for token, offset in zip(text.tokens, offsets, strict=True):
        assert choice.text.startswith(token, offset) or "\N{REPLACEMENT CHARACTER}" in token


def ascii_answer(client, tokenizer, **options):
    """An answer of readable characters alone, and its tokens' texts, so that stop strings can be cut out of it."""
    bias = {str(token): 100 for token in readable(tokenizer)}
    return ask(client, 16, logit_bias=bias, logprobs=True, **options)


def readable(tokenizer):
    return {i for w in [*WORDS, *(f" {w}" for w in WORDS)] for i in tokenizer(w, add_special_tokens=False)["input_ids"]}


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.5])
def test_stop_strings_end_an_answer_wherever_they_fall(client, engine, threshold):
    extra = {"extra_body": {"confidence_threshold": threshold}}
    free = ascii_answer(client, engine.tokenizer, **extra).choices[0]
    tokens, text = [entry.token for entry in free.logprobs.content], free.message.content
    assert text == "".join(tokens)
    ends = [sum(map(len, tokens[: i + 1])) for i in range(len(tokens))]
    for start in range(2, len(text) - 6, 5):
        stop = text[start : start + 4]
        place = text.find(stop)
        reply = ascii_answer(client, engine.tokenizer, stop=[stop, "never"], **extra)
        assert reply.choices[0].message.content == text[:place]
        assert reply.choices[0].finish_reason == "stop"
        read = next(i + 1 for i, end in enumerate(ends) if end >= place + 4)
        assert reply.usage.completion_tokens == read  # token 2 is not drafted where token 1 completes it
        pieces = [
            c.choices[0].delta.content for c in ascii_answer(client, engine.tokenizer, stop=stop, stream=True, **extra)
        ]
        assert "".join(pieces) == text[:place]


def test_eos_ends_an_answer_and_counts_as_a_token(client, engine):
    eos = {str(engine.tokenizer.eos_token_id): 100}
    reply = ask(client, 20, logit_bias=eos)
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.choices[0].message.content, reply.usage.completion_tokens) == ("", 1)
    on = ask(client, 20, logit_bias=eos, extra_body={"ignore_eos": True})
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", 20)


def test_conversations_and_template_options(client, engine):
    said = [
        {"role": "system", "content": "so"},
        {"role": "user", "content": [{"type": "text", "text": "how"}, {"type": "text", "text": "many"}]},
        {"role": "assistant", "content": "and so on", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "what"},
    ]
    plain = [m if isinstance(m["content"], str) else {"role": "user", "content": "how\nmany"} for m in said]
    reply = ask(client, 12, messages=said, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert reply.choices[0].message.content == expected(engine, engine.encode(plain), 12).text


def test_the_length_of_the_model_ends_an_answer(client, engine):
    prompt = [5] * 1015  # 508 pairs of 512 positions
    reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=9, temperature=0)
    wanted = expected(engine, prompt, 9)
    assert reply.choices[0].text == wanted.text and reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == len(wanted.token_ids)


def test_thirty_mixed_requests_at_a_time_are_thirty_single_runs(client, engine, http):
    draw = random.Random(3)
    plans = [
        (question(i), draw.choice((1, 2, 5, 17, 40)), draw.choice((None, 0.0, 0.4, 2.0)), draw.random() < 0.5)
        for i in range(30)
    ]

    def one(plan):
        text, count, threshold, stream = plan
        options = {"messages": [{"role": "user", "content": text}], "stream": stream}
        extra = {} if threshold is None else {"confidence_threshold": threshold}
        reply = ask(client, count, **options, extra_body=extra)
        if stream:
            return "".join(chunk.choices[0].delta.content for chunk in reply)
        return reply.choices[0].message.content

    wanted = [expected(engine, engine.encode(text), count, threshold) for text, count, threshold, _ in plans]
    before = gauge(http, "generation_tokens_total")
    with ThreadPoolExecutor(30) as pool:
        texts = list(pool.map(one, plans))
    assert texts == [answer.text for answer in wanted]
    total = sum(len(answer.token_ids) for answer in wanted)
    until(lambda: gauge(http, "generation_tokens_total") - before >= total)  # counted when an answer is over
    assert gauge(http, "generation_tokens_total") - before == total


def test_metrics_count_what_was_decoded(client, http, engine):
    names = (
        "prompt_tokens_total",
        "generation_tokens_total",
        "decode_steps_total",
        "spec_decode_num_drafts_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "request_success_total",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_count",
        "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count",
    )
    before = [gauge(http, name) for name in names]
    ask(client, 30)
    wanted = expected(engine, engine.encode(MESSAGES), 30)
    added = [gauge(http, name) - value for name, value in zip(names, before, strict=True)]
    assert added[:6] == [wanted.prompt_tokens, 30, wanted.steps, wanted.drafted, wanted.drafted, wanted.accepted]
    assert added[6:] == [1.0] * 7
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert gauge(http, name) == 0
    assert 'finished_reason="length",model_name="tiny"' in http.get("/metrics").text


def test_status_routes(client, http):
    import pipo

    assert http.get("/health").status_code == 200
    assert http.get("/version").json() == {"version": pipo.__version__, "engine": "transformers"}
    (card,) = client.models.list().data
    assert (card.id, card.max_model_len, card.confidence_threshold) == ("tiny", 1024, 0.5)
    assert client.models.retrieve("tiny").id == "tiny"
    assert "<html" in http.get("/").text
    assert http.get("/health", headers={"X-Request-Id": "mine"}).headers["X-Request-Id"] == "mine"
    assert len(http.get("/health").headers["X-Request-Id"]) == 32
