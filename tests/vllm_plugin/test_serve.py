"""`pipo serve` where vLLM is installed: real servers, OpenAI's client, replicas behind vLLM's router."""

import json
import socket
import sys

import httpx2
import psutil
import pytest
import torch
from asking import expected, gauge, question
from server_process import Process
from soak import soak
from transformers import AutoTokenizer

from pipo.decoding.engine import LocalEngine

pytestmark = pytest.mark.slow
PARSERS = ("--", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
HALF = "\ufffd"
"""A character that is not whole: vLLM holds it back at the end."""
SAID = 189
"""A token that the model says, at both places of a pair, and that no question has."""


def pipo_serve(folder, log, *more):
    command = [sys.executable, "-m", "pipo_cli", "serve", folder, "--engine", "vllm", "--dtype", "float32"]
    own = ["--served-model-name", "tiny", "--threshold", "0.5"]
    return Process(log, [*command, *own], more, VLLM_CPU_KVCACHE_SPACE="1")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    running = pipo_serve(folder, tmp_path_factory.mktemp("served") / "log", *PARSERS)
    yield running.wait()
    assert running.stop() in (0, -15), running.log.read_text()[-3000:]


@pytest.fixture(scope="module")
def client(server):
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def text_of(wanted):
    return wanted.text.rstrip(HALF)


def chat(client, number, count, **fields):
    messages = [{"role": "user", "content": question(number)}]
    return client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=count, temperature=0, extra_body=fields.pop("extra", None), **fields
    )


@pytest.mark.parametrize("threshold", [None, 0.0, 0.4, 1.5])
def test_answers_are_the_local_decoders(client, local, threshold):
    given = {} if threshold is None else {"confidence_threshold": threshold}
    for number in range(6):
        reply = chat(client, number, 21, extra=given)
        wanted = expected(local, local.encode(question(number)), 21, 0.5 if threshold is None else threshold)
        assert reply.choices[0].message.content == text_of(wanted)
        assert reply.usage.completion_tokens == len(wanted.token_ids)
        speculation = reply.model_extra["metrics"]["speculative_decoding"]
        assert speculation["num_accepted_draft_tokens"] == wanted.accepted


def test_a_stream_has_the_same_text_and_counts(client, local):
    chunks = list(chat(client, 3, 21, stream=True, stream_options={"include_usage": True}))
    wanted = expected(local, local.encode(question(3)), 21, 0.5)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text_of(wanted)
    assert chunks[-1].usage.completion_tokens == len(wanted.token_ids)


def test_page_metrics_and_refusals(server, client):
    import openai

    with httpx2.Client(base_url=server.url) as http:
        assert "<title>" in http.get("/").text
        before = gauge(http, "spec_decode_num_accepted_tokens_total", "vllm")
        chat(client, 1, 21, extra={"confidence_threshold": 0.0})
        assert gauge(http, "spec_decode_num_accepted_tokens_total", "vllm") >= before + 10
    with pytest.raises(openai.BadRequestError, match="confidence_threshold"):
        chat(client, 1, 21, extra={"confidence_threshold": -1})
    with pytest.raises(openai.BadRequestError):
        chat(client, 1, 10**6)


def test_a_tool_is_called_by_vllms_parser(client, local):
    flag = {"type": "object", "properties": {"on": {"enum": [1, 2]}}, "required": ["on"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "switch", "parameters": flag}}
    choice = {"type": "function", "function": {"name": "switch"}}
    blanks = {str(local.tokenizer.convert_tokens_to_ids(blank)): -100 for blank in "ĠĊĉč"}  # legal in JSON, and endless
    reply = chat(client, 2, 60, tools=[tool], tool_choice=choice, logit_bias=blanks)
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "switch"
    json.loads(call.function.arguments)  # vLLM promises JSON here, not the schema


@pytest.fixture(scope="module")
def thinker(folder, tmp_path_factory):
    """The model, but what was its token SAID in place of is `</think>`."""
    from pipo.model.pipo import PipoForCausalLM

    thinking = tmp_path_factory.mktemp("thinker")
    model, tokenizer = PipoForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    swapped = [SAID, tokenizer.convert_tokens_to_ids("</think>")]
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[swapped] = rows[swapped[::-1]]
    model.save_pretrained(thinking)
    tokenizer.save_pretrained(thinking)
    return str(thinking)


def test_thoughts_are_parted_from_the_answer_by_vllms_parser(thinker, tmp_path):
    """Wherever in a pair the mark between them falls, streamed or not."""
    import openai

    local, places = LocalEngine.load(thinker), set()
    mark = local.tokenizer.convert_tokens_to_ids("</think>")
    running = pipo_serve(thinker, tmp_path / "log", "--", "--reasoning-parser", "deepseek_r1", "--enforce-eager")
    try:
        with openai.OpenAI(base_url=f"{running.wait().url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            for number in range(12):
                wanted = expected(local, local.encode(question(number)), 21, 0.5)
                places |= {slot.tokens.index(mark) for slot in wanted.slots if mark in slot.tokens}
                thoughts, _, answer = text_of(wanted).partition("</think>")
                message = chat(client, number, 21).choices[0].message
                assert (message.reasoning.rstrip(HALF), message.content or "") == (thoughts.rstrip(HALF), answer)
                deltas = [chunk.choices[0].delta for chunk in chat(client, number, 21, stream=True)]
                streamed = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
                assert streamed.rstrip(HALF) == thoughts.rstrip(HALF)
                assert "".join(delta.content or "" for delta in deltas) == answer
    finally:
        running.stop()
    assert places == {0, 1}


def test_soak(server, local):
    soak(server.url, psutil.Process(server.process.pid), local, "vllm", growth=200)


def test_two_replicas_behind_vllms_router(folder, local, tmp_path):
    """As docs/serving.md says; and one of them may die."""
    pytest.importorskip("vllm_router", reason="vllm-router is not installed")
    replicas = [pipo_serve(folder, tmp_path / f"replica{i}") for i in range(2)]
    try:
        urls = [replica.wait().url for replica in replicas]
        command = [sys.executable, "-m", "vllm_router.launch_router", "--worker-urls", *urls]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            metrics = str(free.getsockname()[1])
        router = Process(
            tmp_path / "router",
            [*command, "--policy", "round_robin", "--host", "127.0.0.1", "--prometheus-port", metrics],
        )
        replicas.append(router)
        router.wait()

        def answer(number):
            messages = [{"role": "user", "content": question(number)}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 21, "temperature": 0}
            reply = httpx2.post(f"{router.url}/v1/chat/completions", json=body, timeout=120)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["message"]["content"]

        def same(numbers):
            for number in numbers:
                assert answer(number) == text_of(expected(local, local.encode(question(number)), 21, 0.5))

        same(range(8))
        for url in urls:
            with httpx2.Client(base_url=url) as http:
                assert gauge(http, "request_success_total", "vllm") >= 2
        replicas[0].stop()
        same(range(8, 14))
    finally:
        for running in reversed(replicas):
            running.stop()
