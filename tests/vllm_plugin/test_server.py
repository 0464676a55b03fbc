"""vLLM's own OpenAI server on a PIPO folder, with no flags but the port."""

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import draw, reference
from server_process import Process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """Its address."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("server") / "log"
    running = Process(log, command, ["--dtype", "float32"], VLLM_CPU_KVCACHE_SPACE="1")
    try:
        yield running.wait().url
    finally:
        running.stop()


def post(address, body, path="completions"):
    """Status and answer."""
    data = json.dumps({"temperature": 0, "max_tokens": 24, "return_token_ids": True} | body).encode()
    request = urllib.request.Request(f"{address}/v1/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_concurrent_answers_are_the_local_ones_with_their_statistics(server, local):
    prompts, thresholds = draw((1, 9, 64, 65, 200, 301), seed=40), [0.0, None, 2.0, 0.3, 0.0, None]

    def ask(row):
        extra = {} if thresholds[row] is None else {"vllm_xargs": {"confidence_threshold": thresholds[row]}}
        return post(server, {"prompt": prompts[row], "ignore_eos": True} | extra)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(len(prompts))))
    for (status, answer), prompt, threshold in zip(answers, prompts, thresholds, strict=True):
        expected = reference(local, [prompt], threshold=threshold)[0]
        assert status == 200 and answer["choices"][0]["token_ids"] == expected.token_ids
        usage = answer["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), 24)
        facts = answer["metrics"]["speculative_decoding"]
        assert facts["num_accepted_draft_tokens"] == expected.accepted
        assert facts["num_draft_tokens"] == expected.drafted and facts["num_spec_steps"] == expected.steps


def test_counters(server):
    text = urllib.request.urlopen(f"{server}/metrics").read().decode()
    for name in ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos"):
        assert f"vllm:spec_decode_num_{name}_total{{" in text


def test_both_tokens_of_a_pair_come_in_one_chunk(server):
    body = {"prompt": draw((9,))[0], "stream": True, "ignore_eos": True, "vllm_xargs": {"confidence_threshold": 0}}
    data = json.dumps({"temperature": 0, "max_tokens": 24, "return_token_ids": True} | body).encode()
    request = urllib.request.Request(f"{server}/v1/completions", data, {"Content-Type": "application/json"})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    sizes = [len(chunk["choices"][0]["token_ids"]) for chunk in chunks if chunk["choices"]]
    assert sum(sizes) == 24 and all(size % 2 == 0 for size in sizes)


def test_chat_with_a_stop_string_has_statistics(server):
    question = {"messages": [{"role": "user", "content": "how many"}], "stop": ["e", "a", "o", "s"], "max_tokens": 200}
    status, answer = post(server, question, "chat/completions")
    assert status == 200 and answer["metrics"]["speculative_decoding"]["num_spec_steps"] > 0


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"vllm_xargs": {"confidence_threshold": -1}}, "confidence_threshold"),
        ({"vllm_xargs": {"force_acceptance": "all"}}, "force_acceptance"),
        ({"echo": True, "logprobs": 1}, "prompt_logprobs"),
        ({"prompt": [5, 2, 5]}, "PAD"),
        ({"prompt": [5] * 1023, "max_tokens": 1}, "max_model_len"),
        ({"prompt": [5] * 1024}, "max_tokens"),
        ({"prompt": [5] * 5000}, "1024"),
    ],
)
def test_a_refusal_is_the_callers_and_the_engine_lives(server, body, named):
    status, answer = post(server, {"prompt": [5, 6, 7]} | body)
    assert status == 400 and named in json.dumps(answer)
    assert post(server, {"prompt": [5, 6, 7]})[0] == 200
