"""What does not work is refused by name, and the server goes on."""

import json

import pytest

CHAT = {"messages": [{"role": "user", "content": "so"}], "max_tokens": 2}
TEXT = {"prompt": "so", "max_tokens": 2}

BOTH = [
    ({"no_such_field": 1}, "no_such_field"),
    ({"best_of": 2}, "best_of"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"no_such": True}}, "stream_options.no_such"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"confidence_threshold": -0.1}, "confidence_threshold"),
    ({"confidence_threshold": "high"}, "confidence_threshold"),
    ({"confidence_threshold": True}, "confidence_threshold"),
]
CHAT_ONLY = [
    ({"messages": []}, "messages"),
    ({"messages": "so"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": " "}]}, "PROMPT"),
    ({"messages": [{"role": "user", "content": "hi <|pad|>"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 900}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages.0"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"echo": True}, "echo"),
    ({"prompt": "so"}, "prompt"),
]
TEXT_ONLY = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [320]}, "prompt"),
    ({"prompt": [[5], [2]]}, "prompt"),
    ({"prompt": [5] * 1024}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": 1, "echo": True}, "logprobs"),
    ({"suffix": "x"}, "suffix"),
    ({"messages": []}, "messages"),
]
CASES = [("/v1/chat/completions", CHAT | change, field) for change, field in BOTH + CHAT_ONLY] + [
    ("/v1/completions", TEXT | change, field) for change, field in BOTH + TEXT_ONLY
]


@pytest.mark.parametrize(("route", "body", "field"), CASES)
def test_fields(http, route, body, field):
    reply = http.post(route, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"].startswith(field) and error["message"].startswith(field)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"x"', "null", "[" * 5000, '{"prompt": "a", "temperature": NaN}', "\xff"]
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_bodies_that_are_no_requests(http, route, body):
    reply = http.post(route, content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_other_content_types(http):
    """Browsers send those without asking the server first, from any page."""
    reply = http.post("/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": "text/plain"})
    assert reply.status_code == 400
    assert "application/json" in reply.json()["error"]["message"]


def test_limits_are_named(http):
    long = http.post("/v1/completions", json={"prompt": [5] * 2000}).json()["error"]["message"]
    assert "2000 tokens" in long and "1024" in long
    both = http.post("/v1/completions", json={"prompt": [5] * 1000, "max_tokens": 100}).json()["error"]["message"]
    assert "100" in both and "1000" in both and "1024" in both and "24" in both


def test_models_and_routes_that_are_not_there(http, client):
    import openai

    reply = http.post("/v1/chat/completions", json=CHAT | {"model": "other"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "model")
    with pytest.raises(openai.NotFoundError, match="other"):
        client.models.retrieve("other")
    assert http.get("/v1/embeddings").status_code == 404
    assert http.get("/v1/completions").status_code == 405


def test_openais_client_raises_its_own_errors(client):
    import openai

    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="tiny",
            messages=CHAT["messages"],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )


def test_the_server_goes_on(http):
    assert http.get("/health").status_code == 200
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_null_is_as_good_as_nothing(http):
    fields = "n stream stop seed temperature logit_bias ignore_eos confidence_threshold stream_options tools".split()
    nothing = dict.fromkeys(fields)
    assert http.post("/v1/chat/completions", json=CHAT | nothing).status_code == 200
