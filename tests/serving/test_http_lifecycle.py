"""Limits, keys, clients that go away, errors of the decoder, and the end."""

import json
import signal
import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest
import tiny
import torch
from asking import expected, gauge, question, until

from pipo.decoding.engine import LocalEngine
from pipo.serving.generation import Generation, Rules
from pipo.serving.protocol import CompletionRequest
from pipo.serving.scheduler import Busy, Scheduler

LONG = {"messages": [{"role": "user", "content": "so"}], "max_tokens": 900, "temperature": 0, "ignore_eos": True}
SHORT = LONG | {"max_tokens": 4}


def connect(server):
    return httpx2.Client(base_url=server.url, timeout=120)


def begin(http, body=LONG):
    """A stream of which the first chunk was read. -> (context, response, lines)"""
    context = http.stream("POST", "/v1/chat/completions", json=body | {"stream": True})
    reply = context.__enter__()
    lines = reply.iter_lines()
    assert next(lines).startswith("data: {")
    return context, reply, lines


def test_a_client_that_goes_away_frees_its_place(http, client):
    before = gauge(http, "request_success_total")
    context, _, _ = begin(http)
    until(lambda: gauge(http, "num_requests_running") == 1)
    context.__exit__(None, None, None)
    until(lambda: gauge(http, "num_requests_running") == 0)
    assert 'finished_reason="abort"' in http.get("/metrics").text
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/v1/chat/completions", json=LONG, timeout=0.3)
    until(lambda: gauge(http, "request_success_total") == before + 2)
    assert gauge(http, "num_requests_running") == 0


def test_a_client_that_is_killed_frees_its_place(server, http):
    code = (
        "import sys, httpx2\n"
        f"with httpx2.stream('POST', '{server.url}/v1/chat/completions', json={LONG | {'stream': True}!r}) as reply:\n"
        "    for line in reply.iter_lines(): print(line, flush=True)"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    victim.stdout.readline()
    victim.kill()
    victim.communicate()
    until(lambda: gauge(http, "num_requests_running") == 0)
    assert http.get("/health").status_code == 200


def test_a_full_queue_says_so_and_serves_on(serve, served, engine):
    server = serve(served, "--max-num-seqs", 1, "--max-waiting", 1)
    with connect(server) as http:
        context, _, _ = begin(http)
        waiting = []
        thread = threading.Thread(target=lambda: waiting.append(http.post("/v1/chat/completions", json=SHORT)))
        thread.start()
        until(lambda: gauge(http, "num_requests_waiting") == 1)
        full = http.post("/v1/chat/completions", json=SHORT)
        assert full.status_code == 503 and full.headers["Retry-After"] == "1"
        assert full.json()["error"]["type"] == "overloaded_error"
        assert http.post("/v1/chat/completions", json=SHORT | {"n": 3}).status_code == 400  # never fits
        context.__exit__(None, None, None)
        thread.join()
        wanted = expected(engine, engine.encode("so"), 4, ignore_eos=True)
        assert waiting[0].json()["choices"][0]["message"]["content"] == wanted.text
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:  # it waits and tries again
            assert client.models.list().data[0].max_model_len == 1024
        assert http.post("/v1/chat/completions", json=SHORT).status_code == 200


def test_one_that_waits_and_goes_away_is_never_decoded(serve, served):
    server = serve(served, "--max-num-seqs", 1)
    with connect(server) as http:
        context, _, _ = begin(http)
        with pytest.raises(httpx2.ReadTimeout):
            http.post("/v1/chat/completions", json=SHORT, timeout=0.5)
        until(lambda: gauge(http, "num_requests_waiting") == 0)
        context.__exit__(None, None, None)
        until(lambda: gauge(http, "num_requests_running") == 0)
        assert gauge(http, "request_success_total") == 2


def test_large_bodies(serve, served):
    server = serve(served, "--max-body-mib", 1)
    with connect(server) as http:
        long = {"prompt": "x" * 2**20}
        assert http.post("/v1/completions", json=long).status_code == 413

        def chunks():  # without Content-Length
            yield b'{"prompt": "'
            for _ in range(20):
                yield b"x" * 2**16
            yield b'"}'

        try:
            reply = http.post("/v1/completions", content=chunks(), headers={"Content-Type": "application/json"})
            assert reply.status_code == 413 and "bytes" in reply.json()["error"]["message"]
        except httpx2.WriteError:
            pass  # the server had hung up before all was sent
        assert http.get("/health").status_code == 200
        inside = {"prompt": "so", "max_tokens": 1, "stop": "y" * 900}
        assert http.post("/v1/completions", json=inside).status_code == 200


def test_api_keys(serve, served):
    server = serve(served, "--api-key", "s3crèt")
    with connect(server) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3crèt".encode()}):
            for route in ("/v1/models", "/v1/chat/completions"):
                reply = http.get(route, headers=headers)
                assert reply.status_code == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
        for route in ("/", "/health", "/metrics", "/version"):
            assert http.get(route).status_code == 200
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with httpx2.Client(base_url=server.url, headers={"Authorization": "Bearer s3crèt".encode()}) as http:
        assert http.get("/v1/models").status_code == 200


def test_the_key_may_come_from_the_environment(serve, served):
    server = serve(served, PIPO_API_KEY="key")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key") as client:
        assert client.models.list().data[0].id == served
    assert httpx2.get(f"{server.url}/v1/models").status_code == 401


def test_the_servers_threshold_and_length(serve, served, engine):
    server = serve(served, "--threshold", 0, "--max-model-len", 64)
    with connect(server) as http:
        reply = http.post("/v1/chat/completions", json=LONG | {"max_tokens": 20}).json()
        wanted = expected(engine, engine.encode("so"), 20, 0.0, ignore_eos=True)
        assert reply["choices"][0]["message"]["content"] == wanted.text
        card = http.get("/v1/models").json()["data"][0]
        assert (card["confidence_threshold"], card["max_model_len"]) == (0.0, 64)
        free = http.post("/v1/chat/completions", json={k: v for k, v in LONG.items() if k != "max_tokens"}).json()
        assert free["usage"]["total_tokens"] == 64
        assert "64" in http.post("/v1/chat/completions", json=LONG).json()["error"]["message"]


def test_an_uncompressed_model(serve, tiny_llama):
    engine = LocalEngine.load(tiny_llama)
    server = serve(tiny_llama)
    with connect(server) as http:
        reply = http.post("/v1/chat/completions", json=SHORT).json()
        wanted = expected(engine, engine.encode("so"), 4, ignore_eos=True)
        assert reply["choices"][0]["message"]["content"] == wanted.text
        assert reply["metrics"]["speculative_decoding"] is None
        assert reply["metrics"]["pipo"]["tokens_per_step"] == 1
        assert "spec_decode" not in http.get("/metrics").text
        assert http.get("/v1/models").json()["data"][0]["confidence_threshold"] is None
        refused = http.post("/v1/chat/completions", json=SHORT | {"confidence_threshold": 0.5})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "confidence_threshold")


def test_sigterm_lets_answers_finish(serve, served, engine):
    server = serve(served)
    with connect(server) as http:
        _context, _, lines = begin(http, LONG | {"max_tokens": 300})
        server.process.send_signal(signal.SIGTERM)
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert rest[-1]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(60) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/health")
    assert server.stop(0) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_time_to_finish_is_limited(serve, served, how):
    server = serve(served, "--shutdown-seconds", 0)
    with connect(server) as http:
        _context, _, lines = begin(http)
        server.process.send_signal(how)
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)
    assert server.process.wait(60) == 0


# ---- the scheduler alone


def generation(prompt, updates, count=8):
    request = CompletionRequest(prompt="so", temperature=0)
    rules = Rules(request, max_tokens=count, threshold=0.5, eos=frozenset())
    return Generation(
        prompt, rules, 0, tokenizer=tiny.tokenizer(), device="cpu", arrived=time.perf_counter(), deliver=updates.append
    )


@pytest.fixture
def scheduler():
    over = []
    made = Scheduler(tiny.pipo("llama"), max_num_seqs=2, max_waiting=2, ended=over.append)
    made.over = over
    yield made
    made.close()


def test_an_error_fails_those_concerned_and_the_thread_lives_on(scheduler, monkeypatch, caplog):
    heads = scheduler.model.lm_head
    broken = torch.nn.Identity()
    monkeypatch.setattr(
        broken, "forward", lambda hidden: (_ for _ in ()).throw(RuntimeError("out of memory\nat length"))
    )
    first, updates = [], []
    victim = generation([5, 6, 7], first, 900)
    scheduler.submit([victim])
    until(lambda: len(first) > 3)
    scheduler.model.lm_head = broken
    until(lambda: scheduler.running == 0)
    scheduler.model.lm_head = heads
    assert first[-1].error == "RuntimeError: out of memory" and victim in scheduler.over
    scheduler.submit([generation([5, 6, 7], updates)])
    until(lambda: updates and updates[-1].over)
    assert updates[-1].finish_reason == "length" and scheduler.alive


def test_a_prompt_that_fails_leaves_the_others_alone(scheduler, caplog):
    updates, bad = [], []
    running = generation([5, 6, 7], updates, 60)
    scheduler.submit([running])
    until(lambda: len(updates) > 1)
    scheduler.submit([generation([10**6], bad)])  # no such id; the service refuses it
    until(lambda: updates[-1].over)
    assert bad[-1].error.startswith("IndexError") and len(bad) == 1
    assert updates[-1].finish_reason == "length" and len(running.member.tokens) == 60


def test_an_answer_whose_text_fails_leaves_the_others_alone(scheduler, monkeypatch, caplog):
    updates, bad = [], []
    running, victim = generation([5, 6, 7], updates, 60), generation([5, 6, 7], bad, 60)
    push = victim.text.push
    monkeypatch.setattr(victim.text, "push", lambda token: push(token) if len(bad) < 3 else [][token])
    scheduler.submit([running, victim])
    until(lambda: updates and updates[-1].over)
    assert [update.error for update in bad] == [None] * 3 + ["IndexError: list index out of range"]
    assert updates[-1].finish_reason == "length" and len(running.member.tokens) == 60
    until(lambda: victim in scheduler.over)
    assert victim.completion.finish_reason == "error"


def test_capacity_is_decoded_and_queued_together(scheduler):
    many = [generation([5, 6, 7], [], 900) for _ in range(4)]
    scheduler.submit(many)
    with pytest.raises(Busy):
        scheduler.submit([generation([5], [])])
    scheduler.abort(many)
    until(lambda: len(scheduler.over) == 4)
    assert scheduler.waiting == scheduler.running == scheduler.tokens_in_use == 0
    with pytest.raises(Busy):
        scheduler.submit([generation([5], []) for _ in range(5)])


def test_closing_fails_what_is_left():
    scheduler = Scheduler(tiny.pipo("llama"), max_num_seqs=1, max_waiting=1)
    first, second = [], []
    scheduler.submit([generation([5], first, 900), generation([6], second)])
    until(lambda: first)
    scheduler.close()
    assert first[-1].error == second[-1].error == "the server is shutting down"
    assert not scheduler.alive
    with pytest.raises(Busy):
        scheduler.submit([generation([5], [])])


def test_questions_differ():
    assert len({question(i) for i in range(100)}) == 100
