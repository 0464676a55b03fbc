"""One answer while it is made: from the rules of its request to the updates that its client gets."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipo.decoding.engine import Completion
from pipo.decoding.sampling import FrequencyPenalty, PresencePenalty, Sampler
from pipo.decoding.shared import Member, TokenLogprob
from pipo.pairing import Slot
from pipo.serving.text import Piece, TextStream

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0: scores divided by less would not be finite."""


@dataclass(frozen=True)
class Rules:
    """How the answers of one request are decoded."""

    max_tokens: int
    threshold: float  # of an uncompressed model: unused
    eos: frozenset[int]  # empty: nothing but `max_tokens` and stop strings ends an answer
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None  # of the first answer; the others count on
    top_logprobs: int | None = None

    def sampler(self, prompt_length: int, number: int, device: Any) -> Sampler:
        """Of the request's answer `number`. Bias, repetition, other penalties, temperature, top-k, top-p, min-p."""
        processors = LogitsProcessorList()
        if self.logit_bias:
            processors.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in self.logit_bias}))
        if self.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.presence_penalty:
            processors.append(PresencePenalty(self.presence_penalty, prompt_length))
        if self.frequency_penalty:
            processors.append(FrequencyPenalty(self.frequency_penalty, prompt_length))
        if self.temperature < GREEDY_BELOW:
            return Sampler(processors, do_sample=False)
        if self.temperature != 1:
            processors.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            processors.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            processors.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            processors.append(MinPLogitsWarper(self.min_p))
        seed = random.getrandbits(32) if self.seed is None else (self.seed + number) % 2**32
        return Sampler(processors, True, [torch.Generator(device).manual_seed(seed)])


@dataclass(frozen=True, slots=True)
class Update:
    """What one step added to an answer. After the one with a `finish_reason` or an `error` there is no other."""

    index: int
    tokens: list[tuple[Piece, float | None]]  # pieces that leave; an accepted draft's with its confidence
    logprobs: list[TokenLogprob]  # of this step's tokens
    slot: Slot | None = None
    steps: int = 0  # so far, like the following
    completion_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece, _ in self.tokens)

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class Generation:
    """One answer. `deliver` is called with every `Update`, by the thread that decodes; times: `time.perf_counter()`."""

    def __init__(
        self,
        prompt: list[int],
        rules: Rules,
        number: int,  # among the request's answers
        *,
        tokenizer: Any,
        device: Any,
        arrived: float,  # before tokenization
        deliver: Callable[[Update], None],
    ) -> None:
        self.rules, self.number, self.arrived, self._deliver = rules, number, arrived, deliver
        self.started_at = self.first_at = self.finished_at = 0.0
        self.error: str | None = None
        self.text = TextStream(tokenizer, rules.stop)
        self._confidences: list[float | None] = []  # of the tokens that have not left
        self._sent_logprobs = 0
        end = len(prompt) + rules.max_tokens
        self.member = Member(
            Member.room(prompt, end, device),
            len(prompt),
            prompt=prompt,
            end=end,
            sampler=rules.sampler(len(prompt), number, device),
            threshold=rules.threshold,
            stops=self._stops,
            emitted=self._emitted,
            top_logprobs=rules.top_logprobs,
        )

    @property
    def over(self) -> bool:
        """Nothing more is decoded."""
        return self.member.finish_reason is not None

    @property
    def completion(self) -> Completion:
        """The answer as far as it is there."""
        return Completion(
            prompt=self.member.prompt,
            slots=list(self.member.slots),
            text=self.text.text,
            finish_reason=self.member.finish_reason or "",
        )

    def start(self) -> None:
        """Decoding begins."""
        self.started_at = time.perf_counter()

    def abort(self) -> None:
        """Nobody waits for it any more. The decoder drops it before its next step."""
        self.member.finish_reason = self.member.finish_reason or "abort"

    def fail(self, message: str) -> None:
        """Decoding it raised an error."""
        self.error, self.member.finish_reason = message, "error"
        self._deliver(Update(self.number, [], [], error=message))

    def _stops(self, token: int) -> bool:
        found = self.text.push(token)
        return found or token in self.rules.eos

    def _emitted(self, slot: Slot) -> None:
        now = time.perf_counter()
        self.first_at = self.first_at or now
        self.finished_at = now
        self._confidences += [None, slot.confidence][: len(slot.tokens)]
        pieces = self.text.take() + (self.text.finish() if self.over else [])
        confidences, self._confidences = self._confidences[: len(pieces)], self._confidences[len(pieces) :]
        logprobs = self.member.logprobs[self._sent_logprobs :]
        self._sent_logprobs += len(logprobs)
        self._deliver(
            Update(
                self.number,
                list(zip(pieces, confidences, strict=True)),
                logprobs,
                slot,
                steps=len(self.member.slots),
                completion_tokens=self.member.length - len(self.member.prompt),
                finish_reason=self.member.finish_reason,
            )
        )
