"""`pipo bench`: TTFT, TPOT, throughput and KV memory, as ratios to regular decoding in the same engine and run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipo.bench.limit import pair_step_bytes, regular_step_bytes
from pipo.decoding.generate import generate
from pipo.decoding.reader import left_pad
from pipo.engine import LocalEngine
from pipo.errors import UsageError
from pipo.provenance import hardware

METHODS = {"local": ("regular", "pipo", "transformers"), "vllm": ("regular", "pipo", "ngram")}


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. `transformers` is the base under transformers' own `generate`, `ngram` the base with vLLM's own
    speculative decoding by n-grams of the prompt: references.
    """

    model: str
    base: str | None = None  # None: the model's own backbone, uncompressed
    prompt_lengths: Sequence[int] = (128, 2048)
    new_tokens: int = 64
    concurrency: Sequence[int] = (1,)
    methods: Sequence[str] = ("regular", "pipo")
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

    def measure(self, cell: Cell, trial: int) -> Trial:
        """Decode once."""

    def limit(self, regular: dict[str, Any], pipo: dict[str, Any]) -> dict[str, float]:
        """What the bytes that a step reads allow, from the two methods' rows, where this can be said."""

    def close(self) -> None:
        """Give back what was taken."""


def bench(options: BenchOptions, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Medians over trials, methods interleaved. Raises `UsageError`."""
    valid = METHODS[options.engine]
    for method in options.methods:
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
            cells = [Cell(method, length, concurrency) for method in options.methods]
            for trial in range(options.trials + 1):
                for cell in cells:
                    progress(f"{cell.method}, {length} tokens, concurrency {concurrency}, trial {trial}")
                    result = bed.measure(cell, trial)
                    if trial:  # the first warms up
                        cell.trials.append(result)
            rows += [cell.row(options.new_tokens) for cell in cells]
            ratios += _ratios(rows[-len(cells) :], bed)
    return rows, ratios


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
        base = _base(options, engine)
        self.models = {"pipo": engine.model, "regular": base, "transformers": base}

    def measure(self, cell: Cell, trial: int) -> Trial:
        return _measure(self.models[cell.method], cell, self.options, trial)

    def limit(self, regular: dict[str, Any], pipo: dict[str, Any]) -> dict[str, float]:
        return {"tpot_speedup_limit": _limit(regular, pipo, self.models)}

    def close(self) -> None:
        pass


def _base(options: BenchOptions, engine: LocalEngine) -> Any:
    if options.base is not None or not engine.is_pipo:
        return LocalEngine.load(options.base or options.model, dtype=options.dtype, device=options.device).model
    return own_backbone(engine.model)


def own_backbone(model: Any) -> Any:
    """A PIPO model's backbone and LM head as a plain causal LM, sharing the weights: for speed, not for quality."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config.get_text_config())
    plain.model, plain.lm_head = model.backbone, model.lm_head
    plain.generation_config = GenerationConfig(pad_token_id=model.config.pad_token_id)
    return plain.eval()


def _measure(model: Any, cell: Cell, options: BenchOptions, trial: int) -> Trial:
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
    if cell.method == "pipo":
        common |= {"confidence_threshold": options.threshold, "force_acceptance": options.force_acceptance}
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
    by = {row["method"]: row for row in rows}
    if not {"regular", "pipo"} <= by.keys():
        return []
    regular, pipo = by["regular"], by["pipo"]
    return [
        {
            "prompt_length": pipo["prompt_length"],
            "concurrency": pipo["concurrency"],
            "ttft_speedup": regular["ttft_ms"] / pipo["ttft_ms"],
            "tpot_speedup": regular["tpot_ms"] / pipo["tpot_ms"],
            **bed.limit(regular, pipo),
            "throughput_speedup": pipo["tokens_per_second"] / regular["tokens_per_second"],
            "kv_ratio": pipo["kv_bytes_per_token"] / regular["kv_bytes_per_token"],
        }
    ]


def _limit(regular: dict[str, Any], pipo: dict[str, Any], models: dict[str, Any]) -> float:
    """The TPOT ratio if only bytes counted: weights once a step for the whole batch, the cache of every row."""

    def cache(row: dict[str, Any]) -> float:
        context = row["prompt_length"] + row["new_tokens"] / 2
        return float(row["kv_bytes_per_token"] * context * row["concurrency"])

    drafts = pipo["acceptance_rate"] is not None
    step = pair_step_bytes(models["pipo"], cache(pipo), drafts)
    return regular_step_bytes(models["regular"], cache(regular)) / step * float(pipo["tokens_per_step"])
