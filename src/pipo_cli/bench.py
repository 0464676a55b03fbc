"""`pipo bench`: speed and memory, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipo_cli import options
from pipo_cli.options import Dtype, Engine

if TYPE_CHECKING:
    from rich.table import Table

BASE = "The model of all but `pipo`. Default: MODEL's own backbone, uncompressed, with its own MTP head."
METHODS = (
    "Which of regular, mtp, speculative, pipo, transformers (the base under transformers' own generate); in vLLM: "
    "regular, pipo, ngram (the base under vLLM's own speculation). "
    "Default: regular,pipo, or regular where MODEL is uncompressed."
)
FORCED = "Keep this share of the drafts of `pipo` and `speculative` by a seeded coin, instead of judging them."

HEADINGS = {
    "method": "method",
    "prompt_length": "prompt",
    "concurrency": "conc.",
    "acceptance_rate": "kept",
    "tokens_per_step": "tok/step",
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "tokens_per_second": "tok/s",
    "kv_bytes_per_token": "KV B/tok",
    "ttft_speedup": "TTFT",
    "tpot_speedup": "TPOT",
    "tpot_speedup_limit": "TPOT limit",
    "throughput_speedup": "throughput",
    "kv_ratio": "KV",
}
"""The columns that the tables show."""


def bench(
    model: options.ModelArgument,
    base: Annotated[str | None, typer.Option(help=BASE)] = None,
    prompt_lengths: Annotated[str, typer.Option(metavar="N[,N]", help="Prompt lengths in tokens.")] = "128,2048",
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to write after each prompt.")] = 64,
    concurrency: Annotated[str, typer.Option(metavar="N[,N]", help="Sequences decoded at a time.")] = "1",
    methods: Annotated[str | None, typer.Option(metavar="M[,M]", help=METHODS)] = None,
    threshold: options.ThresholdOption = None,
    force_acceptance: Annotated[float | None, typer.Option(metavar="R", help=FORCED)] = None,
    trials: Annotated[int, typer.Option(min=1, help="Measurements of each; medians are shown.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the random prompts.")] = 0,
    engine: options.EngineOption = Engine.local,
    dtype: options.DtypeOption = Dtype.auto,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="F", help="Picture of the ratios to write.")] = None,
) -> None:
    """Measure TTFT, TPOT, throughput and KV memory, as ratios to regular decoding in the same engine and run."""
    from pipo.measure.bench.options import BenchOptions
    from pipo.measure.bench.run import bench as measure

    if threshold is not None and force_acceptance is not None:
        raise typer.BadParameter("goes without --threshold", param_hint="--force-acceptance")
    if engine is Engine.vllm:
        options.no_device(device)
    wanted = BenchOptions(
        model=model,
        base=base,
        prompt_lengths=options.numbers("--prompt-lengths", prompt_lengths),
        new_tokens=new_tokens,
        concurrency=options.numbers("--concurrency", concurrency),
        methods=None if methods is None else [name.strip() for name in methods.split(",") if name.strip()],
        threshold=options.check_threshold(threshold),
        force_acceptance=force_acceptance,
        trials=trials,
        dtype=dtype.value,
        device="cpu" if engine is Engine.vllm else options.pick_device(device),
        engine=engine.value,
        seed=seed,
    )
    result = _measure(measure, wanted)
    if plot is not None:
        from pipo.measure.bench.plot import plot as draw

        draw(result, str(plot))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print(result)


def _measure(measure: Any, wanted: Any) -> dict[str, Any]:
    """With the present measurement shown on stderr: in place on a terminal, a line each elsewhere."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        result: dict[str, Any] = measure(wanted, lambda text: console.print(text, soft_wrap=True))
        return result
    with console.status("loading") as status:
        shown: dict[str, Any] = measure(wanted, status.update)
        return shown


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    hardware = result["hardware"]["gpu"] or result["hardware"]["cpu"]
    console.print(f"{result['model']}, {result['dtype']}, on {hardware}; times in milliseconds", soft_wrap=True)
    console.print(_table(None, result["rows"]))
    if result["ratios"]:
        console.print(_table("regular / method (KV: method / regular)", result["ratios"]))


def _table(title: str | None, rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    columns = [name for name in HEADINGS if name in rows[0]]
    for name in columns:
        if name == "method":  # never cut short
            table.add_column(HEADINGS[name], min_width=max(len(row[name]) for row in rows))
        else:
            table.add_column(HEADINGS[name], justify="right")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
