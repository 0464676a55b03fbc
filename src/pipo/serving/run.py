"""Start the local decoder's server, and end it."""

from __future__ import annotations

import errno
import signal
import socket
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from pipo.decoding.engine import LocalEngine
from pipo.errors import UsageError, first_line
from pipo.serving.app import make_app
from pipo.serving.metrics import Metrics
from pipo.serving.scheduler import Scheduler
from pipo.serving.service import Limits, Service


def bind(host: str, port: int) -> socket.socket:
    """A socket to listen on once the model is loaded; port 0 takes a free one. Raises `UsageError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        field, fix = "--port", "choose another one, or 0 for a free one"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            field, fix = "--host", "name an address of this machine"
        raise UsageError(field, f"cannot listen on {host}:{port} ({first_line(error)})", fix) from error
    return listener


def run(
    engine: LocalEngine,
    listener: socket.socket,
    *,
    name: str,
    threshold: float | None = None,
    api_key: str | None = None,
    limits: Limits,
    shutdown_seconds: int = 30,
) -> None:
    """Serve until SIGTERM or SIGINT; running answers have `shutdown_seconds` to finish then."""
    metrics = Metrics(name, engine.is_pipo)
    scheduler = Scheduler(
        engine.model, max_num_seqs=limits.max_num_seqs, max_waiting=limits.max_waiting, ended=metrics.ended
    )
    service = Service(engine, scheduler, name, threshold, limits.max_model_len)
    metrics.watch(scheduler, limits.max_num_seqs * service.max_model_len)
    app = make_app(service, metrics, api_key=api_key, max_body_bytes=limits.max_body_bytes)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=shutdown_seconds
    )
    AppStatus.disable_automatic_graceful_drain()  # it would end streams at once, and uvicorn counts the seconds
    server = _Server(config, f"http://{_printable(listener)} serves {name}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)  # uvicorn sends it once more when it has shut down
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)


def _ignore(_: int, __: FrameType | None) -> None:
    pass


def _printable(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
