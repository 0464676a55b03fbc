"""`pipo check`: trainer and decoder agree on a checkpoint."""

from __future__ import annotations

import json

import typer

from pipo_cli import options
from pipo_cli.options import Dtype, Engine


def check(
    model: options.ModelArgument,
    engine: options.EngineOption = Engine.local,
    dtype: options.DtypeOption = Dtype.float32,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare the trainer's forward with the decoder, or the decoder with vLLM. Exits with 1 where they differ."""
    from pipo.measure.check import check as compare
    from pipo.measure.check import check_vllm

    if engine is Engine.vllm:
        options.no_device(device)
        report = check_vllm(model, dtype=dtype.value)
    else:
        report = compare(model, dtype=dtype.value, device=options.pick_device(device))
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        verdict = "agree" if report.ok else "DIFFER"
        typer.echo(f"{' and '.join(report.paths)} {verdict}: {report.tokens_compared} tokens compared")
        typer.echo(f"largest difference of logits: {report.max_abs_diff:.2g}")
    if not report.ok:
        raise typer.Exit(1)
