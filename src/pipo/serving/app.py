"""The routes of the local decoder."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from openai import BaseModel
from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pipo
from pipo.errors import UsageError
from pipo.serving import replies
from pipo.serving.metrics import Metrics
from pipo.serving.page import page_response
from pipo.serving.protocol import ChatRequest, CompletionRequest, StreamOptions, explain
from pipo.serving.replies import Wants
from pipo.serving.scheduler import Busy
from pipo.serving.service import Answers, Failed, Service, UnknownModel

RETRY_AFTER = "1"
PING_SECONDS = 15
"""How often a stream says that it is alive, in comments that clients pass over: proxies hang up on silence."""

Chunks = AsyncIterator[replies.Chunk]


def make_app(service: Service, metrics: Metrics, *, api_key: str | None, max_body_bytes: int) -> ASGIApp:
    """The application; it closes `service` when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="pipo", version=pipo.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_status(app, service, metrics)
    is_pipo = service.engine.is_pipo

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        answers = await service.chat(body, time.perf_counter())
        if body.stream:
            chunks = _chat_chunks(answers, service.spell, Wants.of(body))
            return _Stream(service, answers, _events(chunks, body.options, lambda: replies.chat_end(answers, is_pipo)))
        return await _whole(request, service, answers, lambda: replies.chat_reply(answers, service.spell, is_pipo))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        answers = await service.complete(body, time.perf_counter())
        echo = [p if isinstance(p, str) else service.decode(p) for p in body.prompts] if body.echo else None
        if body.stream:
            chunks = _text_chunks(answers, service.spell, Wants.of(body), echo)
            return _Stream(service, answers, _events(chunks, body.options, lambda: replies.text_end(answers, is_pipo)))
        return await _whole(
            request, service, answers, lambda: replies.text_reply(answers, service.spell, is_pipo, echo)
        )

    return Guard(app, api_key, max_body_bytes)


def _add_status(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return page_response()

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if service.scheduler.alive else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": pipo.__version__, "engine": "transformers"}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [replies.card(service).to_dict()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise UnknownModel(name)
        return replies.card(service).to_dict()


def _add_errors(app: FastAPI) -> None:
    def reply(message: str, status: int, param: str | None = None, **headers: str) -> JSONResponse:
        return JSONResponse(replies.error(message, status, param), status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        field, message = explain(list(error.errors()))
        return reply(message, 400, field)

    @app.exception_handler(UsageError)
    async def refused(_: Request, error: UsageError) -> JSONResponse:
        return reply(str(error), 400, error.field)

    @app.exception_handler(UnknownModel)
    async def unknown(_: Request, error: UnknownModel) -> JSONResponse:
        return reply(f"model: {error} is not served here; see /v1/models", 404, "model")

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Busy) -> JSONResponse:
        return reply("the queue is full; try again", 503, None, **{"Retry-After": RETRY_AFTER})

    @app.exception_handler(Failed)
    async def failed(_: Request, error: Failed) -> JSONResponse:
        return reply(str(error), 500)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return reply(type(error).__name__, 500)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return reply(str(error.detail), error.status_code)


async def _whole(request: Request, service: Service, answers: Answers, reply: Callable[[], BaseModel]) -> Response:
    """All of it at once."""

    async def finish() -> None:
        async for _ in answers.updates():
            pass

    try:
        if await _unless_gone(request.receive, finish()):
            return Response(reply().to_json(indent=None), media_type="application/json")
        return Response(status_code=499)  # nobody reads it
    finally:
        service.scheduler.abort(answers.generations)


class _Stream(EventSourceResponse):
    """Server-sent events as they come. The work is dropped when the client goes away."""

    def __init__(self, service: Service, answers: Answers, events: AsyncIterator[str]) -> None:
        super().__init__(events, ping=PING_SECONDS, sep="\n")
        self.service, self.answers = service, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.scheduler.abort(self.answers.generations)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Finish the work, or drop it when the client goes away. Returns whether it is finished."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finished = tasks[0].done()
        if finished:
            tasks[0].result()
        return finished
    finally:
        for task in tasks:
            task.cancel()


async def _events(chunks: Chunks, options: StreamOptions, end: Callable[[], replies.Chunk]) -> AsyncIterator[str]:
    """The data of events: chunks, then usage where it is wanted, then the end."""
    try:
        async for chunk in chunks:
            yield chunk.to_json(indent=None)
        if options.include_usage:
            yield end().to_json(indent=None)
    except Failed as error:
        yield json.dumps(replies.error(str(error), 500))
    yield "[DONE]"


async def _chat_chunks(answers: Answers, spell: replies.Spell, wants: Wants) -> Chunks:
    begun: set[int] = set()
    async for update in answers.updates():
        if wants.has(update):
            yield replies.chat_chunk(answers, update, update.index not in begun, spell, wants)
            begun.add(update.index)


async def _text_chunks(answers: Answers, spell: replies.Spell, wants: Wants, echo: list[str] | None) -> Chunks:
    per_prompt = len(answers.generations) // len(answers.prompts)
    before = [echo[i // per_prompt] if echo else "" for i in range(len(answers.generations))]
    async for update in answers.updates():
        if wants.has(update):
            text, before[update.index] = before[update.index] + update.text, ""
            yield replies.text_chunk(answers, update, text, spell, wants)


class Guard:
    """Before the application: request ids, the API key, the size of bodies."""

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int) -> None:
        self.app, self.api_key, self.max_body_bytes = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        identifier = headers.get("x-request-id") or uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = identifier
            await send(message)

        app = self._refusal(scope["path"], headers) or self.app
        await app(scope, self._limited(receive), send_with_id)

    def _refusal(self, path: str, headers: Headers) -> ASGIApp | None:
        if self.api_key is not None and path.startswith("/v1/"):
            given = headers.get("authorization", "").encode("latin-1")  # the bytes as they came
            if not hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
                message = "Authorization: wrong or missing API key; send it as Bearer token"
                return JSONResponse(replies.error(message, 401), 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return JSONResponse(replies.error(self._too_large(), 413), 413, {"Connection": "close"})
        return None

    def _limited(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counted

    def _too_large(self) -> str:
        return f"the body is larger than {self.max_body_bytes} bytes"
