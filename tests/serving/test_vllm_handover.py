"""What is handed to vLLM's server: options, and requests through the middleware. vLLM itself is not needed."""

import json
import os
import sys

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipo.serving import vllm_server
from pipo.serving.vllm_server import PipoFields


async def _echo(request: Request) -> JSONResponse:
    body = (await request.body()).decode("utf-8", "replace")
    return JSONResponse({"path": request.url.path, "body": body, "length": request.headers.get("content-length")})


STAND_IN = PipoFields(Starlette(routes=[Route("/{path:path}", _echo, methods=["GET", "POST"])]))


def call(method, path, **options):
    async def go():
        transport = httpx2.ASGITransport(app=STAND_IN)
        async with httpx2.AsyncClient(transport=transport, base_url="http://vllm") as client:
            return await client.request(method, path, **options)

    return anyio.run(go)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n": 1}, {"n": 1}),
        ({"n": 1, "confidence_threshold": None}, {"n": 1}),
        ({"confidence_threshold": 0.5}, {"vllm_xargs": {"confidence_threshold": 0.5}}),
        (
            {"confidence_threshold": 2, "vllm_xargs": {"detailed_metrics": True}},
            {"vllm_xargs": {"detailed_metrics": True, "confidence_threshold": 2.0}},
        ),
        ({"vllm_xargs": {"confidence_threshold": 0.1}}, {"vllm_xargs": {"confidence_threshold": 0.1}}),
        ({"stream_options": {"include_usage": True}}, {"stream_options": {"include_usage": True}}),
        ([1, 2], [1, 2]),
    ],
)
def test_thresholds_go_where_the_plugin_reads_them(route, given, expected):
    reply = call("POST", route, json=given).json()
    assert json.loads(reply["body"]) == expected
    assert int(reply["length"]) == len(reply["body"])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"confidence_threshold": -1}, "confidence_threshold"),
        ({"confidence_threshold": "high"}, "confidence_threshold"),
        ({"stream_options": {"include_drafts": True}}, "stream_options.include_drafts"),
    ],
)
def test_what_does_not_work_is_refused_by_name(given, field):
    reply = call("POST", "/v1/completions", json=given)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


def test_other_bodies_and_routes_pass_as_they_are():
    assert call("POST", "/v1/completions", content="{").json()["body"] == "{"
    assert (
        call("POST", "/tokenize", content='{"confidence_threshold": 1}').json()["body"] == '{"confidence_threshold": 1}'
    )
    assert call("GET", "/version").json()["path"] == "/version"


def test_the_page_is_at_the_root():
    reply = call("GET", "/")
    assert "<title>PIPO chat</title>" in reply.text and "Content-Security-Policy" in reply.headers


def test_options_of_the_command(pipo_command, monkeypatch, tmp_path):
    """The process becomes vLLM's: what it would be started with."""
    started = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append((path, arguments)) or sys.exit(7))
    monkeypatch.setattr("pipo_cli.serve.find_spec", lambda name: name)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    options = ["--threshold", "0.25", "--api-key", "secret", "--tensor-parallel-size", "2", "--max-model-len", "512"]
    code = pipo_command("serve", str(tmp_path), "--served-model-name", "m", *options, "--", "--enforce-eager")
    assert code == 7
    ((path, arguments),) = started
    assert path == sys.executable
    assert arguments[:3] == [sys.executable, "-m", vllm_server.SERVER]
    assert "secret" not in " ".join(arguments) and os.environ["VLLM_API_KEY"] == "secret"
    pairs = dict(zip(arguments[3:-2:2], arguments[4:-2:2], strict=True))
    assert pairs == {
        "--model": str(tmp_path),
        "--served-model-name": "m",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--override-generation-config": '{"confidence_threshold": 0.25}',
        "--max-model-len": "512",
        "--max-num-seqs": "16",
        "--tensor-parallel-size": "2",
        "--dtype": "auto",
        "--shutdown-timeout": "30",
        "--middleware": "pipo.serving.vllm_server.PipoFields",
    }
    assert arguments[-2:] == ["--enable-request-id-headers", "--enforce-eager"]


@pytest.fixture
def pipo_command():
    """The command line in this process; returns its exit code."""
    from typer.testing import CliRunner

    from pipo_cli.app import app

    return lambda *arguments: CliRunner().invoke(app, arguments).exit_code
