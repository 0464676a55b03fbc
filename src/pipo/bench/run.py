"""`pipo bench`: TTFT, TPOT, throughput and KV memory, as ratios to regular decoding in the same engine and run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipo import drafted
from pipo.bench.limit import drafted_step_bytes, pair_step_bytes, regular_step_bytes
from pipo.decoding.drafted import check_rolls_back
from pipo.decoding.generate import generate
from pipo.decoding.reader import left_pad
from pipo.engine import LocalEngine
from pipo.errors import UsageError
from pipo.mtp import MtpHead
from pipo.provenance import hardware

METHODS = {
    "local": ("regular", "mtp", "speculative", "pipo", "transformers"),
    "vllm": ("regular", "pipo", "ngram"),
}
"""Of each engine, what it can be measured with."""


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. `transformers` is the base under transformers' own `generate`, `ngram` the base with vLLM's own
    speculative decoding by n-grams of the prompt: references.

    `methods` None: regular and, for a PIPO model, pipo. Without `base` the model's own backbone decodes uncompressed,
    with the model's MTP head, which was not trained for that: right for speed, not for acceptance.
    """

    model: str
    base: str | None = None  # None: the model's own backbone, uncompressed
    prompt_lengths: Sequence[int] = (128, 2048)
    new_tokens: int = 64
    concurrency: Sequence[int] = (1,)
    methods: Sequence[str] | None = None
    threshold: float | None = None
    force_acceptance: float | None = None
    trials: int = 3
    engine: str = "local"
    dtype: str = "auto"
    device: str = "cpu"
    seed: int = 0


@dataclass
class Trial:
    """One measured decode of a batch."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_second: float
    tokens: int
    steps: int
    drafted: int = 0
    accepted: int = 0
    kv_bytes: int = 0


@dataclass
class Cell:
    """One line of the table: a method at a prompt length and a concurrency."""

    method: str
    prompt_length: int
    concurrency: int
    trials: list[Trial] = field(default_factory=list)

    def row(self, new_tokens: int) -> dict[str, Any]:
        def median(name: str) -> float:
            return statistics.median(getattr(trial, name) for trial in self.trials)

        last = self.trials[-1]
        return {
            "method": self.method,
            "prompt_length": self.prompt_length,
            "new_tokens": new_tokens,
            "concurrency": self.concurrency,
            "acceptance_rate": last.accepted / last.drafted if last.drafted else None,
            "tokens_per_step": last.tokens / last.steps,
            "ttft_ms": median("ttft_ms"),
            "tpot_ms": median("tpot_ms"),
            "tokens_per_second": median("tokens_per_second"),
            "kv_bytes_per_token": last.kv_bytes / (self.concurrency * self.prompt_length + last.tokens),
        }


class Bed(Protocol):
    """The models of a run, loaded, in one engine."""

    dtype: str
    methods: Sequence[str]

    def measure(self, cell: Cell, trial: int) -> Trial:
        """Decode once."""

    def limit(self, regular: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
        """What the bytes that a step reads allow, from regular's row and another method's, where this can be said."""

    def close(self) -> None:
        """Give back what was taken."""


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
        from pipo.bench.vllm import VllmBed

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


def pick_methods(options: BenchOptions, is_pipo: bool) -> Sequence[str]:
    """What is asked for, or the default. Raises `UsageError` for what only a PIPO model has."""
    methods = options.methods or (("regular", "pipo") if is_pipo else ("regular",))
    if not is_pipo and "pipo" in methods:
        others = [method for method in METHODS[options.engine] if method != "pipo"]
        raise UsageError("--methods", f"{options.model} is no PIPO model", f"choose from {', '.join(others)}")
    if not is_pipo and options.threshold is not None:
        raise UsageError("--threshold", f"{options.model} is no PIPO model", "leave it out")
    return methods


def random_prompts(cell: Cell, seed: int, vocabulary: int, pad: int) -> list[list[int]]:
    """Of a trial: the same for every method. PAD is not in them."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(vocabulary, (cell.concurrency, cell.prompt_length), generator=draw)
    prompts[prompts == pad] = (pad + 1) % vocabulary
    ids: list[list[int]] = prompts.tolist()
    return ids


class LocalBed:
    """pipo's own decoder."""

    def __init__(self, options: BenchOptions) -> None:
        engine = LocalEngine.load(options.model, dtype=options.dtype, device=options.device)
        self.options, self.dtype = options, str(engine.model.dtype).removeprefix("torch.")
        self.methods = pick_methods(options, engine.is_pipo)
        self.parts = _parts(options, self.methods, engine)

    def measure(self, cell: Cell, trial: int) -> Trial:
        return _measure(self.parts, cell, self.options, trial)

    def limit(self, regular: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
        return {"tpot_speedup_limit": _limit(regular, row, self.parts)}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class _Parts:
    """What the methods decode with. `mtp` is the base's head, None where no method needs one."""

    pipo: Any
    base: Any
    mtp: MtpHead | None

    def model(self, method: str) -> Any:
        return self.pipo if method == "pipo" else self.base

    def options(self, method: str, options: BenchOptions) -> dict[str, Any]:
        """What `generate` is called with, for this method alone."""
        if method == "pipo":
            return {"confidence_threshold": options.threshold, "force_acceptance": options.force_acceptance}
        if method == "speculative":
            return {"mtp": self.mtp, "verified": True, "force_acceptance": options.force_acceptance}
        return {"mtp": self.mtp} if method == "mtp" else {}


def _parts(options: BenchOptions, methods: Sequence[str], engine: LocalEngine) -> _Parts:
    """The base and its MTP head: of --base, of an uncompressed MODEL, or MODEL's own backbone and head."""
    if options.base is not None:
        base_engine = LocalEngine.load(options.base, dtype=options.dtype, device=options.device)
        if base_engine.is_pipo:
            raise UsageError("--base", f"{options.base} is a PIPO model", "give an uncompressed model")
    else:
        base_engine = engine
    base = own_backbone(engine.model) if base_engine.is_pipo else base_engine.model
    if "speculative" in methods:
        check_rolls_back(base.get_decoder().config)
    head = None
    if set(methods) & set(drafted.METHODS):
        head = engine.model.mtp if base_engine.is_pipo else base_engine.mtp
    return _Parts(engine.model, base, head)


def own_backbone(model: Any) -> Any:
    """A PIPO model's backbone and LM head as a plain causal LM, sharing the weights: for speed, not for quality."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config.get_text_config())
    plain.model, plain.lm_head = model.backbone, model.lm_head
    plain.generation_config = GenerationConfig(pad_token_id=model.config.pad_token_id)
    return plain.eval()


def _measure(parts: _Parts, cell: Cell, options: BenchOptions, trial: int) -> Trial:
    model = parts.model(cell.method)
    pad = model.generation_config.pad_token_id or 0
    vocabulary = model.get_output_embeddings().weight.shape[0]
    ids, mask = left_pad(random_prompts(cell, options.seed + trial, vocabulary, pad), pad, model.device)
    common: dict[str, Any] = {
        "max_new_tokens": options.new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": pad,
    }
    start = time.perf_counter()
    if cell.method == "transformers":
        return _transformers(model, ids, mask, common, start)
    common |= parts.options(cell.method, options)
    out = generate(model, input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **common)
    tokens = [sum(len(slot.tokens) for slot in slots) for slots in out.slots]
    later = sum(tokens) - sum(len(slots[0].tokens) for slots in out.slots)
    loop_s = out.finished_at - out.first_slot_at
    return Trial(
        ttft_ms=1000 * (out.first_slot_at - start),
        tpot_ms=1000 * loop_s * cell.concurrency / max(later, 1),
        tokens_per_second=sum(tokens) / (out.finished_at - start),
        tokens=sum(tokens),
        steps=int(out.steps.sum()),
        drafted=int(out.drafted.sum()),
        accepted=int(out.accepted.sum()),
        kv_bytes=out.kv_bytes,
    )


class _FirstToken:
    """A transformers streamer that notes when the first token came (after the prompt)."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _transformers(model: Any, ids: torch.Tensor, mask: torch.Tensor, common: dict[str, Any], start: float) -> Trial:
    clock = _FirstToken()
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        streamer=clock if len(ids) == 1 else None,
        return_dict_in_generate=True,
        **common,
    )
    end = time.perf_counter()
    new = out.sequences.shape[1] - ids.shape[1]
    first = clock.times[1] if len(clock.times) > 1 else start
    cached = sum(
        layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers if hasattr(layer, "keys")
    )
    return Trial(
        ttft_ms=1000 * (first - start) if clock.times else float("nan"),
        tpot_ms=1000 * (end - first) / max(new - 1, 1),
        tokens_per_second=new * len(ids) / (end - start),
        tokens=new * len(ids),
        steps=new * len(ids),
        kv_bytes=cached,
    )


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


def _limit(regular: dict[str, Any], row: dict[str, Any], parts: _Parts) -> float:
    """The TPOT ratio if only bytes counted: weights once a step for the whole batch, the cache of every row."""

    def cache(row: dict[str, Any]) -> float:
        context = row["prompt_length"] + row["new_tokens"] / 2
        return float(row["kv_bytes_per_token"] * context * row["concurrency"])

    if row["method"] == "pipo":
        step = pair_step_bytes(parts.pipo, cache(row), row["acceptance_rate"] is not None)
    else:
        step = drafted_step_bytes(parts.base, parts.mtp, cache(row))
    return regular_step_bytes(parts.base, cache(regular)) / step * float(row["tokens_per_step"])
