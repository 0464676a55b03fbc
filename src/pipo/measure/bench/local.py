"""The models of a measurement in pipo's own decoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipo.decoding.engine import LocalEngine
from pipo.decoding.generate import generate
from pipo.decoding.mtp_base import check_rolls_back
from pipo.decoding.reader import left_pad
from pipo.errors import UsageError
from pipo.measure.bench.cell import Cell, Trial, random_prompts
from pipo.measure.bench.limit import drafted_step_bytes, pair_step_bytes, regular_step_bytes
from pipo.measure.bench.options import BenchOptions, pick_methods
from pipo.model import mtp_base
from pipo.model.mtp import MtpHead


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
    if set(methods) & set(mtp_base.METHODS):
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
