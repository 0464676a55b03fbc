"""One answer while it is made: from the rules of its request to the updates that its client gets."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from pipo.decoding.text_stream import Piece
from pipo.errors import first_line
from pipo.pairing import Slot
from pipo.serving.protocol import ChatRequest, CompletionRequest
from pipo.serving.text import AnswerText

log = logging.getLogger("pipo.serving")

GREEDY_BELOW = 1e-5
"""Temperatures below this are 0: scores divided by less would not be finite."""


@dataclass(frozen=True)
class Rules:
    """How the answers of one request are decoded."""

    request: ChatRequest | CompletionRequest  # checked; what it left out is the model's own
    max_tokens: int
    threshold: float  # of an uncompressed model: unused
    eos: frozenset[int]  # empty: nothing but `max_tokens` and stop strings ends an answer

    def sampler(self, prompt_length: int, number: int, device: Any) -> Sampler:
        """Of the request's answer `number`. Bias, repetition, other penalties, temperature, top-k, top-p, min-p."""
        asked, processors = self.request, LogitsProcessorList()
        if asked.logit_bias:
            bias = {(int(token),): value for token, value in asked.logit_bias.items()}
            processors.append(SequenceBiasLogitsProcessor(bias))
        if asked.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
        if asked.presence_penalty:
            processors.append(PresencePenalty(asked.presence_penalty, prompt_length))
        if asked.frequency_penalty:
            processors.append(FrequencyPenalty(asked.frequency_penalty, prompt_length))
        if asked.temperature < GREEDY_BELOW:
            return Sampler(processors, do_sample=False)
        if asked.temperature != 1:
            processors.append(TemperatureLogitsWarper(asked.temperature))
        if asked.top_k > 0:
            processors.append(TopKLogitsWarper(asked.top_k))
        if asked.top_p < 1:
            processors.append(TopPLogitsWarper(asked.top_p))
        if asked.min_p > 0:
            processors.append(MinPLogitsWarper(asked.min_p))
        seed = random.getrandbits(32) if asked.seed is None else (asked.seed + number) % 2**32
        return Sampler(processors, True, [torch.Generator(device).manual_seed(seed)])


@dataclass(frozen=True, slots=True)
class Sent:
    """A token that leaves."""

    piece: Piece
    confidence: float | None  # of an accepted draft
    logprob: TokenLogprob | None  # where it is wanted


@dataclass(frozen=True, slots=True)
class Update:
    """What one step added to an answer. After the one with a `finish_reason` or an `error` there is no other."""

    index: int
    tokens: list[Sent]  # those of a step may wait for a later one
    slot: Slot | None = None
    steps: int = 0  # so far, like the following
    completion_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(sent.piece.text for sent in self.tokens)

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
        self.text = AnswerText(tokenizer, rules.request.stop_strings)
        self.sent: list[Sent] = []
        self._confidences: list[float | None] = []  # of all tokens
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
            top_logprobs=rules.request.wanted_logprobs,
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
        self._deliver(Update(self.number, [], error=message))

    def _stops(self, token: int) -> bool:
        found = True
        with self._own_errors():
            found = self.text.push(token)
        return found or token in self.rules.eos

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """What raises inside ends this answer; in the decoding loop it would end all."""
        try:
            yield
        except Exception as error:
            log.exception("the text of an answer failed")
            self.error = f"{type(error).__name__}: {first_line(error)}"

    def _emitted(self, slot: Slot) -> None:
        pieces: list[Piece] = []
        with self._own_errors():
            pieces = self.text.take() + (self.text.finish() if self.over else [])
        if self.error is not None:
            self.fail(self.error)
            return
        now = time.perf_counter()
        self.first_at = self.first_at or now
        self.finished_at = now
        self._confidences += [None, slot.confidence][: len(slot.tokens)]
        before, logprobs = len(self.sent), self.member.logprobs
        for number, piece in enumerate(pieces, before):
            self.sent.append(Sent(piece, self._confidences[number], logprobs[number] if logprobs else None))
        self._deliver(
            Update(
                self.number,
                self.sent[before:],
                slot,
                steps=len(self.member.slots),
                completion_tokens=self.member.length - len(self.member.prompt),
                finish_reason=self.member.finish_reason,
            )
        )
