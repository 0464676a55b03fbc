"""`pipo serve`: an OpenAI-compatible server."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated

import typer

from pipo_cli import options
from pipo_cli.options import Dtype


class ServingEngine(StrEnum):
    """What decodes behind the routes."""

    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


HOST = "Address to listen on; 0.0.0.0 is every one of this machine."
ENGINE = "auto is vLLM where it is installed, else the local decoder (transformers)."


def serve(
    model: options.ModelArgument,
    vllm_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM-OPTIONS]", help="More options for vLLM's server.")
    ] = None,
    host: Annotated[str, typer.Option(help=HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    engine: Annotated[ServingEngine, typer.Option(help=ENGINE)] = ServingEngine.auto,
    threshold: options.ThresholdOption = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="PIPO_API_KEY", help="Required of every request to /v1 as Bearer token.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name in the API. Default: MODEL as typed.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer. Default: the model's.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Answers decoded at a time.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers queued; more get 503. transformers only.")] = 64,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request; more gets 413. transformers only.")] = 4,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs that share the model. vLLM only.")] = 1,
    shutdown_seconds: Annotated[int, typer.Option(min=0, help="Time for running answers after SIGTERM.")] = 30,
    dtype: options.DtypeOption = Dtype.auto,
    device: options.DeviceOption = "auto",
) -> None:
    """Serve a model over HTTP, with OpenAI's routes, metrics, and a page to chat at /."""
    threshold = options.check_threshold(threshold)
    name = served_model_name or model
    if _picked(engine) is ServingEngine.vllm:
        from pipo.serving.vllm_server import replace_process

        replace_process(
            model,
            name=name,
            host=host,
            port=port,
            threshold=threshold,
            api_key=api_key,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            tensor_parallel_size=tensor_parallel_size,
            dtype=dtype.value,
            shutdown_seconds=shutdown_seconds,
            more=vllm_options or [],
        )
    if vllm_options:
        raise typer.BadParameter("are for --engine vllm", param_hint="VLLM-OPTIONS")
    if tensor_parallel_size != 1:
        raise typer.BadParameter("needs --engine vllm", param_hint="--tensor-parallel-size")
    _need_packages()
    from pipo.serving.run import bind, run
    from pipo.serving.service import Limits

    listener = bind(host, port)
    loaded = options.load_engine(model, dtype, device, threshold)
    limits = Limits(max_model_len, max_num_seqs, max_waiting, max_body_mib * 2**20)
    run(
        loaded,
        listener,
        name=name,
        threshold=threshold,
        api_key=api_key,
        limits=limits,
        shutdown_seconds=shutdown_seconds,
    )


def _picked(engine: ServingEngine) -> ServingEngine:
    installed = find_spec("vllm") is not None
    if engine is ServingEngine.vllm and not installed:
        from pipo.errors import extra

        raise typer.BadParameter(f"vLLM is not installed; {extra('vllm')}", param_hint="--engine")
    if engine is ServingEngine.auto:
        return ServingEngine.vllm if installed else ServingEngine.transformers
    return engine


def _need_packages() -> None:
    from pipo.errors import extra

    for package in ("fastapi", "openai", "prometheus_client", "sse_starlette", "uvicorn"):
        if find_spec(package) is None:
            problem = f"the package {package} is not installed; {extra('serve')}"
            raise typer.BadParameter(problem, param_hint="--engine")
