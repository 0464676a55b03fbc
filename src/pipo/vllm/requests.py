"""A request's own options, and what no request may ask for. Checked before it reaches the engine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipo.errors import UsageError
from pipo.pairing import accepts_none, check_force_acceptance, check_threshold

THRESHOLD, FORCE, DETAILED = "confidence_threshold", "force_acceptance", "detailed_metrics"
"""Keys of `SamplingParams.extra_args`, and of `vllm_xargs` over HTTP."""
RECORD = "draft_record"
"""A name under which the worker keeps the answer's drafts, where it was told to keep any."""


@dataclass(frozen=True)
class PairOptions:
    """How a request's drafts are judged. `force` keeps a share of them by a seeded coin, whatever the confidence.

    `detailed` adds to the request's statistics, step by step, what was drafted and kept. `record`: see `RECORD`.
    """

    threshold: float
    force: float | None = None
    grammar: bool = False  # the grammar's mask exists for token 1 only
    detailed: bool = False
    record: str | None = None

    @property
    def drafts(self) -> bool:
        return not self.grammar and (self.force is not None or not accepts_none(self.threshold))

    @classmethod
    def of(cls, params: Any, default: float) -> PairOptions:
        """Out of `SamplingParams`. Raises `UsageError`."""
        extra = params.extra_args or {}
        force = extra.get(FORCE)
        return cls(
            threshold=check_threshold(extra.get(THRESHOLD, default)),
            force=None if force is None else check_force_acceptance(force),
            grammar=params.structured_outputs is not None,
            detailed=bool(extra.get(DETAILED, False)),
            record=extra.get(RECORD),
        )


def check_request(request: Any, config: Any) -> None:
    """Raises `UsageError` that names the field. `request` is vLLM's `EngineCoreRequest`."""
    model = config.model_config
    params, prompt = request.sampling_params, request.prompt_token_ids
    if params is None:
        raise UsageError("pooling_params", "PIPO models generate only", "send a completion request")
    PairOptions.of(params, model.hf_config.confidence_threshold)
    unsupported = {
        "prompt_logprobs": params.prompt_logprobs is not None,
        "thinking_token_budget": params.thinking_token_budget is not None,
        "repetition_detection": params.repetition_detection is not None,
        "trace_decode_token_ids": bool(params.trace_decode_token_ids),
        "prompt_embeds": request.prompt_embeds is not None or prompt is None,
        "resumable": request.resumable,
    }
    for name, given in unsupported.items():
        if given:
            raise UsageError(name, "is not supported for PIPO models", "leave it out")
    pad = model.hf_config.pad_token_id
    if pad in prompt:
        raise UsageError("prompt", f"PAD ({pad}) inside a prompt", "remove it; PAD is put in by the decoder alone")
    room = model.max_model_len - 2
    if len(prompt) > room:
        problem = f"{len(prompt)} tokens leave no room for a pair in max_model_len {model.max_model_len}"
        raise UsageError("prompt", problem, f"shorten it to {room}")


def check_all_requests() -> None:
    """Hook the check into vLLM's front end, behind its own checks: an error there is the caller's (HTTP 400)."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    from pipo.vllm.settings import is_pipo

    stock = InputProcessor.process_inputs

    @functools.wraps(stock)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = stock(self, *args, **kwargs)
        if is_pipo(self.vllm_config):
            try:
                check_request(request, self.vllm_config)
            except UsageError as error:
                raise VLLMValidationError(str(error), parameter=error.field) from error
        return request

    InputProcessor.process_inputs = process_inputs
