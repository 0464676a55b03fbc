"""`pipo serve` where vLLM is installed: real servers, OpenAI's client, replicas behind vLLM's router."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest
from asking import expected, gauge, question
from soak import soak

pytestmark = pytest.mark.slow
SRC = Path(__file__).parents[2] / "src"
START_SECONDS = 600
PARSERS = ("--", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


class Process:
    """A server on a free port, once it is healthy."""

    def __init__(self, log, arguments, more=(), **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | environment
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*arguments, "--port", str(self.port), *more], env=env, stdout=out, stderr=out
            )

    def wait(self):
        """Until it answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            try:
                if httpx2.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)

    def stop(self):
        """The exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(120)


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
    """vLLM holds back a character that is not whole at the end."""
    return wanted.text.rstrip("\ufffd")


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
