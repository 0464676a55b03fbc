"""`generate`: the loop behind transformers' own interface, for PIPO models and for any causal LM.

A causal LM decodes as `regular`; with an MTP head beside it as `mtp`, or as `speculative` if its drafts are verified.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.utils import ModelOutput

from pipo.decoding.attention import fast_attention
from pipo.decoding.loop import Coin, Loop, Row, Threshold, make_reader
from pipo.decoding.mtp_base import DraftedReader, VerifyingReader
from pipo.decoding.reader import position_limit
from pipo.decoding.sampling import PresencePenalty, Sampler
from pipo.decoding.speculative import SpeculativeLoop
from pipo.errors import UsageError
from pipo.model.mtp import MtpHead
from pipo.model.mtp_base import DraftedBase
from pipo.pairing import Slot, check_force_acceptance, chosen_threshold, to_pairs

REFUSED = {
    "num_beams": 1,
    "guidance_scale": None,
    "use_cache": True,
    "cache_implementation": None,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "prompt_lookup_num_tokens": None,
    "dola_layers": None,
    "penalty_alpha": None,
    "watermarking_config": None,
}
"""Generation options that do not work here, with the value that switches them off."""


@dataclass
class PipoGenerateOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns. Times are `time.perf_counter()` seconds."""

    sequences: Tensor | None = None  # [B, T]: prompt, real tokens, right-padded with pad_token_id
    steps: Tensor | None = None  # [B]
    drafted: Tensor | None = None  # [B]
    accepted: Tensor | None = None  # [B]
    confidences: list[list[float]] | None = None  # one for each drafted token
    slots: list[list[Slot]] | None = None
    finish_reasons: list[str] | None = None
    first_slot_at: float | None = None
    finished_at: float | None = None
    kv_bytes: int | None = None


@torch.no_grad()
def generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    confidence_threshold: float | None = None,
    force_acceptance: float | None = None,
    presence_penalty: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    mtp: MtpHead | None = None,
    verified: bool = False,
    streamer: Any = None,
    on_slot: Any = None,
    tail: float | None = None,
    **kwargs: Any,
) -> Any:
    """Decode. All of `GenerationConfig`'s options that make sense a token at a time work; the rest is refused by name.

    confidence_threshold: None takes the model's stored one. force_acceptance: share of drafts that a seeded coin keeps.
    generators: one a row, makes its draws independent of the batch. on_slot: called with (row, Slot) as they are made.
    mtp: the head of an uncompressed model, whose drafts are all kept, or `verified` so that nothing is lost.
    tail: the last rows of a batch are cut ("length") after this many times the steps that three quarters of it needed.
    Raises `UsageError` for bad input.
    """
    _check_options(model, kwargs)
    drafted = None if mtp is None else DraftedBase(model, mtp)
    policy = _policy(model, confidence_threshold, force_acceptance, generators, drafted is not None and verified)
    returns_dict = kwargs.pop("return_dict_in_generate", None)
    _add_stop_strings(kwargs)

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **rest: Any,
    ) -> Any:
        mask = rest.get("attention_mask")
        prompts = _prompts(model, input_ids, mask)
        if presence_penalty:
            after = int(bool(logits_processor) and isinstance(logits_processor[0], RepetitionPenaltyLogitsProcessor))
            logits_processor.insert(after, PresencePenalty(presence_penalty, input_ids.shape[1]))  # as in vLLM
        loop = _loop(
            drafted or model,
            verified,
            sampler=Sampler(logits_processor, generation_config.do_sample, generators),
            stop=stopping_criteria,
            max_length=generation_config.max_length,
            policy=policy,
            on_slot=_events(streamer, on_slot),
            tail=tail,
        )
        rows = _rows(input_ids, generation_config.max_length, generation_config.pad_token_id)
        for row, prompt in zip(rows, prompts, strict=True):
            _limit(row, drafted or model, verified, prompt)
        with fast_attention(*attention_configs(drafted or model)):
            loop.run(prompts, rows)
        if streamer is not None:
            streamer.end()
        out = _output(loop, rows, input_ids.shape[1])
        return out if returns_dict or generation_config.return_dict_in_generate else out.sequences

    return GenerationMixin.generate(model, inputs, custom_generate=decode, streamer=streamer, **kwargs)


def _loop(model: Any, verified: bool, **parts: Any) -> Loop:
    if not isinstance(model, DraftedBase):
        return Loop(reader=make_reader(model), **parts)
    if verified:
        return SpeculativeLoop(reader=VerifyingReader(model), **parts)
    return Loop(reader=DraftedReader(model), **parts | {"policy": Threshold(0)})


def _check_options(model: Any, kwargs: dict[str, Any]) -> None:
    config = kwargs.get("generation_config")
    for name, off in REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if value is not None and value != off:
            raise UsageError(name, f"{value!r} is not supported when decoding in pairs", f"leave it at {off!r}")
    known = set(vars(GenerationConfig())) | set(inspect.signature(GenerationMixin.generate).parameters)
    known |= {"input_ids", "attention_mask", "tokenizer", "max_length"}
    for name in kwargs.keys() - known:
        raise UsageError(name, "unknown option of generate", "see transformers.GenerationConfig")
    for name in ("assistant_model", "custom_generate", "inputs_embeds", "past_key_values"):
        if kwargs.get(name) is not None:
            raise UsageError(name, "is not supported when decoding in pairs", "leave it out")
    for name in ("temperature", "top_p"):
        value = kwargs.get(name)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise UsageError(name, f"{value!r} is no finite number above 0", "for greedy decoding use do_sample=False")


def _add_stop_strings(kwargs: dict[str, Any]) -> None:
    """Stop strings as a criterion of ours: transformers loses the tokenizer on the way to a custom loop."""
    tokenizer = kwargs.pop("tokenizer", None)
    strings = kwargs.pop("stop_strings", None)
    if strings is None:
        return
    if tokenizer is None:
        raise UsageError("stop_strings", "need a tokenizer", "pass tokenizer=... too")
    criteria = StoppingCriteriaList(kwargs.get("stopping_criteria") or [])
    kwargs["stopping_criteria"] = criteria
    criteria.append(StopStringCriteria(tokenizer, strings))


def _policy(
    model: Any,
    threshold: float | None,
    force: float | None,
    generators: Sequence[torch.Generator] | None,
    verified: bool,
) -> Threshold | Coin | None:
    is_pipo = model.config.model_type == "pipo"
    if not is_pipo and (threshold is not None or (force is not None and not verified)):
        field = "force_acceptance" if threshold is None else "confidence_threshold"
        raise UsageError(field, "the model is no PIPO model", "leave it out")
    if force is not None:
        return Coin(check_force_acceptance(force), generators=generators)
    if not is_pipo:
        return None
    return Threshold(chosen_threshold(threshold, getattr(model.generation_config, "confidence_threshold", None)))


def _prompts(model: Any, input_ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The real ids of every row. Raises `UsageError` for an empty or overlong prompt, or a PAD inside one."""
    keep = torch.ones_like(input_ids) if mask is None else mask
    pad = model.config.pad_token_id if model.config.model_type == "pipo" else None
    prompts = []
    for ids, real in zip(input_ids.tolist(), keep.bool().tolist(), strict=True):
        start = real.index(True) if True in real else len(real)
        prompt = ids[start:]
        if not prompt:
            raise UsageError("input_ids", "an empty prompt", "give at least one token")
        if not all(real[start:]):
            raise UsageError(
                "attention_mask", "zeros inside or after a prompt (or PAD inside one)", "pad at the left only"
            )
        if pad is not None and pad in prompt:
            raise UsageError(
                "input_ids", f"PAD ({pad}) inside a prompt", "remove it; PAD is put in by the decoder alone"
            )
        prompts.append(prompt)
    return prompts


def _rows(input_ids: Tensor, max_length: int, pad: int | None) -> list[Row]:
    capacity = max(max_length, input_ids.shape[1]) + 1
    buffer = input_ids.new_full((len(input_ids), capacity), pad if pad is not None else 0)
    buffer[:, : input_ids.shape[1]] = input_ids
    return [Row(buffer[i : i + 1], input_ids.shape[1]) for i in range(len(input_ids))]


def _limit(row: Row, model: Any, verified: bool, prompt: Sequence[int]) -> None:
    """End `row` where the model's positions are used up. Raises `UsageError` if the prompt uses them up."""
    limit = position_limit(model)
    if limit is None:
        return
    read = len(to_pairs(prompt, 0)) if model.config.model_type == "pipo" else len(prompt)
    if read >= limit:
        problem = f"{len(prompt)} tokens fill {read} positions, the model has {limit}"
        raise UsageError("input_ids", problem, "shorten the prompt")
    if not isinstance(model, DraftedBase):
        row.max_steps = limit - read + 1  # the first is the prefill, the others read a position each
    elif verified:
        row.max_length = row.length + limit - read + 1  # as many tokens as without drafts
    else:
        row.max_steps = (limit - read) // 2 + 1


def attention_configs(model: Any) -> list[Any]:
    """Of the decoders that decoding runs, as `fast_attention` takes them."""
    if isinstance(model, DraftedBase) or model.config.model_type == "pipo":
        return [model.backbone.config, model.mtp.config]
    return [model.get_decoder().config]


def _events(streamer: Any, on_slot: Any) -> Any:
    def emit(row: int, slot: Slot) -> None:
        if on_slot is not None:
            on_slot(row, slot)
        if streamer is not None:
            for token in slot.tokens:
                streamer.put(torch.tensor([token]))

    return emit if streamer is not None or on_slot is not None else None


def _output(loop: Loop, rows: Sequence[Row], width: int) -> PipoGenerateOutput:
    longest = max(row.length for row in rows)
    drafts = [[slot for slot in row.slots if slot.draft is not None] for row in rows]
    return PipoGenerateOutput(
        sequences=torch.cat([row.ids[:, :longest] for row in rows]),
        steps=torch.tensor([len(row.slots) for row in rows]),
        drafted=torch.tensor([len(slots) for slots in drafts]),
        accepted=torch.tensor([sum(slot.accepted for slot in slots) for slots in drafts]),
        confidences=[[slot.confidence for slot in slots if slot.confidence is not None] for slots in drafts],
        slots=[row.slots for row in rows],
        finish_reasons=[row.finish_reason or "stop" for row in rows],
        first_slot_at=loop.first_slot_at,
        finished_at=loop.finished_at,
        kv_bytes=loop.kv_bytes,
    )
