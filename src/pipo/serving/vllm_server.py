"""Hand over to vLLM's own OpenAI server, with our page and `confidence_threshold` as a field of requests.

This process becomes vLLM's; an ASGI middleware, which vLLM loads by its option `--middleware`, does the rest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipo.convert.shipped import resolve
from pipo.errors import UsageError
from pipo.pairing import check_threshold
from pipo.serving.page import page_response

SERVER = "vllm.entrypoints.openai.api_server"
MIDDLEWARE = "pipo.serving.vllm_server.PipoFields"
FIELD = "confidence_threshold"
ROUTES = ("/v1/chat/completions", "/v1/completions")


def replace_process(model: str, *, api_key: str | None, **options: Any) -> NoReturn:
    """Become vLLM's server. Signals and the exit code are its own from here on."""
    if api_key is not None:
        os.environ["VLLM_API_KEY"] = api_key  # no argument, since everyone on the machine can read those
    os.execv(sys.executable, [sys.executable, "-m", SERVER, *arguments(resolve(model), **options)])


def arguments(
    path: str,
    *,
    name: str,
    host: str,
    port: int,
    threshold: float | None,
    max_model_len: int | None,
    max_num_seqs: int,
    tensor_parallel_size: int,
    dtype: str,
    shutdown_seconds: int,
    more: Sequence[str],
) -> list[str]:
    """Of vLLM's server. `more`, as the user wrote them, come last and win."""
    given = {
        "--model": path,
        "--served-model-name": name,
        "--host": host,
        "--port": port,
        "--override-generation-config": None if threshold is None else json.dumps({FIELD: threshold}),
        "--max-model-len": max_model_len,
        "--max-num-seqs": max_num_seqs,
        "--tensor-parallel-size": tensor_parallel_size,
        "--dtype": dtype,
        "--shutdown-timeout": shutdown_seconds,
        "--middleware": MIDDLEWARE,
    }
    flags = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    return [*flags, "--enable-request-id-headers", *more]


class PipoFields:
    """Serves the page, and moves `confidence_threshold` to where the plugin reads it, `vllm_xargs`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            await page_response()(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in ROUTES and scope["method"] == "POST":
            await self._rewritten(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _rewritten(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import JSONResponse

        body = await _read(receive)
        try:
            body = json.dumps(for_plugin(json.loads(body))).encode()
        except UsageError as error:
            reply = {"error": {"message": str(error), "type": "BadRequestError", "param": error.field, "code": 400}}
            await JSONResponse(reply, 400)(scope, receive, send)
            return
        except (ValueError, RecursionError):
            pass  # vLLM says what is wrong with it
        headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.app({**scope, "headers": headers}, _replay(body, receive), send)


def for_plugin(request: Any) -> Any:
    """The request as the plugin understands it. Raises `UsageError` for a bad threshold or what does not work here."""
    if not isinstance(request, Mapping):
        return request
    options = request.get("stream_options")
    if isinstance(options, Mapping) and options.get("include_drafts"):
        raise UsageError("stream_options.include_drafts", "is not supported by vLLM", "use --engine transformers")
    rest = {key: value for key, value in request.items() if key != FIELD}
    if request.get(FIELD) is None:
        return rest
    return rest | {"vllm_xargs": (rest.get("vllm_xargs") or {}) | {FIELD: check_threshold(request[FIELD])}}


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
