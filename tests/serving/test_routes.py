"""The application in this process: what takes too long, or has to be looked at from inside."""

import json

import anyio
import httpx2
import openai
import pytest
import tiny
from asking import expected, sse

from pipo.decoding.engine import LocalEngine
from pipo.decoding.text_stream import UNKNOWN
from pipo.serving import app
from pipo.serving.metrics import Metrics
from pipo.serving.protocol import CompletionRequest
from pipo.serving.scheduler import Scheduler
from pipo.serving.service import Service

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "so"}], "temperature": 0, "max_tokens": 20}


@pytest.fixture
def service(engine):
    made = Service(engine, Scheduler(engine.model, max_num_seqs=2, max_waiting=2), "tiny", None, None)
    yield made
    made.close()


@pytest.fixture
def transport(service):
    metrics = Metrics("tiny", is_pipo=True)
    return httpx2.ASGITransport(app=app.make_app(service, metrics, api_key=None, max_body_bytes=10**6))


def slow(service, monkeypatch, seconds=0.1):
    """Every answer of the service waits before its first token."""
    chat = service.chat

    async def later(*args):
        answers = await chat(*args)
        updates = answers.updates

        async def waiting():
            await anyio.sleep(seconds)
            async for update in updates():
                yield update

        answers.updates = waiting
        return answers

    monkeypatch.setattr(service, "chat", later)


def test_a_stream_says_that_it_is_alive(service, transport, engine, monkeypatch):
    monkeypatch.setattr(app, "PING_SECONDS", 0.01)
    slow(service, monkeypatch)

    async def go():
        async with httpx2.AsyncClient(transport=transport, base_url="http://pipo") as http:
            reply = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
            client = openai.AsyncOpenAI(base_url="http://pipo/v1", api_key="x", http_client=http)
            chunks = [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
        return reply, chunks

    reply, chunks = anyio.run(go)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    blocks = reply.text.removesuffix("\n\n").split("\n\n")
    events = [block for block in blocks if not block.startswith(": ping")]  # pings may come to the last moment
    assert blocks[0].startswith(": ping") and events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-1])
    wanted = expected(engine, engine.encode("so"), 20).text
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == wanted


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_what_chunks_hold(transport, route):
    """To the letter: other clients than OpenAI's read them too."""
    body = {k: v for k, v in CHAT.items() if k != "messages"} | {"stream": True, "top_k": None}
    body |= {"stream_options": {"include_usage": True}}
    body |= {"messages": CHAT["messages"]} if route.startswith("chat") else {"prompt": "so"}

    async def go():
        async with httpx2.AsyncClient(transport=transport, base_url="http://pipo") as http:
            return await http.post(f"/v1/{route}", json=body)

    *events, _ = anyio.run(go).text.split("\n\n")
    first, *_, last, usage = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert set(first) == {"id", "object", "created", "model", "choices"}
    (choice,) = first["choices"]
    text = {"delta"} if route.startswith("chat") else {"text"}
    assert set(choice) == {"index", "logprobs", "finish_reason"} | text
    assert choice["logprobs"] is choice["finish_reason"] is None
    assert last["choices"][0]["finish_reason"] == "length"
    assert set(usage) == {*first, "usage", "metrics"} and usage["choices"] == []
    assert set(usage["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_bytes_that_are_no_characters(engine):
    """A random model writes many, and a tokenizer with byte fallback decodes them otherwise once more have come."""
    tokenizer = tiny.byte_fallback_tokenizer()
    scheduler = Scheduler(engine.model, max_num_seqs=8, max_waiting=0)
    service = Service(LocalEngine(engine.model, tokenizer), scheduler, "tiny", None, None)
    made = app.make_app(service, Metrics("tiny", is_pipo=True), api_key=None, max_body_bytes=10**6)
    allowed = {str(token): 100 for token in range(3, len(tokenizer))}
    body = {"prompt": [5, 6], "n": 8, "seed": 1, "max_tokens": 60, "logprobs": 0, "logit_bias": allowed}

    async def go(**more):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=made), base_url="http://pipo") as http:
            return await http.post("/v1/completions", json=body | more)

    whole = anyio.run(go).json()["choices"]
    streamed = [{"text": "", "text_offset": [], "tokens": []} for _ in whole]
    lines = anyio.run(lambda: go(stream=True)).text.splitlines()
    for chunk in sse(lines):
        (choice,) = chunk["choices"]
        seen = streamed[choice["index"]]
        seen["text"] += choice["text"]
        for field in ("text_offset", "tokens"):
            seen[field] += choice["logprobs"][field]
    for choice, seen in zip(whole, streamed, strict=True):
        assert choice["finish_reason"] == "length" and UNKNOWN in choice["text"]
        assert seen == {"text": choice["text"]} | {k: choice["logprobs"][k] for k in ("text_offset", "tokens")}
        assert len(seen["tokens"]) == 60
        for token, offset in list(zip(seen["tokens"], seen["text_offset"], strict=True))[1:]:
            assert UNKNOWN in token or choice["text"].startswith((token, UNKNOWN), offset)  # good in a bad run
    service.close()


def test_what_a_request_leaves_out_is_the_models_own(engine, monkeypatch):
    monkeypatch.setattr(engine.model.generation_config, "top_k", 7)
    monkeypatch.setattr(engine.model.generation_config, "temperature", 0.5)
    scheduler = Scheduler(engine.model, max_num_seqs=1, max_waiting=0)
    service = Service(engine, scheduler, "tiny", None, None)

    def asked(**fields):
        request = service._rules(CompletionRequest(prompt="so", **fields), 1).request
        return request.top_k, request.temperature, request.top_p, request.min_p, request.repetition_penalty

    assert asked() == asked(top_k=None) == (7, 0.5, 1.0, 0.0, 1.0)
    assert asked(top_k=0, temperature=1.0, top_p=0.5) == (0, 1.0, 0.5, 0.0, 1.0)
    service.close()


def test_answers_end_where_the_engines_do(engine, monkeypatch):
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", None)
    service = Service(engine, Scheduler(engine.model, max_num_seqs=1, max_waiting=0), "tiny", None, None)
    assert service.eos == {engine.tokenizer.eos_token_id}
    service.close()
