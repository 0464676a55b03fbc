"""`pipo bench`: TTFT, TPOT, throughput and KV memory, as ratios to regular decoding in the same engine and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipo.errors import UsageError
from pipo.measure.bench.cell import Bed, Cell
from pipo.measure.bench.local import LocalBed
from pipo.measure.bench.options import METHODS, BenchOptions
from pipo.runtime.provenance import hardware


def bench(options: BenchOptions, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Medians over trials, methods interleaved. Raises `UsageError`."""
    valid = METHODS[options.engine]
    for method in options.methods or ():
        if method not in valid:
            raise UsageError("--methods", f"{method!r} cannot be measured", f"choose from {', '.join(valid)}")
    bed = _bed(options)
    try:
        rows, ratios = _fill(bed, options, progress)
    finally:
        bed.close()
    return {
        "hardware": hardware(),
        "model": options.model,
        "base": options.base or "own backbone",
        "dtype": bed.dtype,
        "rows": rows,
        "ratios": ratios,
    }


def _bed(options: BenchOptions) -> Bed:
    if options.engine == "vllm":
        from pipo.measure.bench.vllm import VllmBed

        return VllmBed(options)
    return LocalBed(options)


def _fill(bed: Bed, options: BenchOptions, progress: Callable[[str], None]) -> tuple[list[Any], list[Any]]:
    rows, ratios = [], []
    for length in options.prompt_lengths:
        for concurrency in options.concurrency:
            cells = [Cell(method, length, concurrency) for method in bed.methods]
            for trial in range(options.trials + 1):
                for cell in cells:
                    progress(f"{cell.method}, {length} tokens, concurrency {concurrency}, trial {trial}")
                    result = bed.measure(cell, trial)
                    if trial:  # the first warms up
                        cell.trials.append(result)
            rows += [cell.row(options.new_tokens) for cell in cells]
            ratios += _ratios(rows[-len(cells) :], bed)
    return rows, ratios


def _ratios(rows: list[dict[str, Any]], bed: Bed) -> list[dict[str, Any]]:
    """Regular decoding / every other method of this engine."""
    regular = next((row for row in rows if row["method"] == "regular"), None)
    others = [row for row in rows if row["method"] not in ("regular", "transformers")]
    return [] if regular is None else [_ratio(regular, row, bed) for row in others]


def _ratio(regular: dict[str, Any], row: dict[str, Any], bed: Bed) -> dict[str, Any]:
    return {
        "method": row["method"],
        "prompt_length": row["prompt_length"],
        "concurrency": row["concurrency"],
        "ttft_speedup": regular["ttft_ms"] / row["ttft_ms"],
        "tpot_speedup": regular["tpot_ms"] / row["tpot_ms"],
        **bed.limit(regular, row),
        "throughput_speedup": row["tokens_per_second"] / regular["tokens_per_second"],
        "kv_ratio": row["kv_bytes_per_token"] / regular["kv_bytes_per_token"],
    }
