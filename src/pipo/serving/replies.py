"""Answers as OpenAI's API writes them, with vLLM's per-request metrics and our drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipo.decoding.engine import Completion
from pipo.decoding.shared import TokenLogprob
from pipo.serving.generation import Generation, Update
from pipo.serving.protocol import ChatRequest, CompletionRequest
from pipo.serving.service import Answers

Json = dict[str, Any]
Decode = Callable[[Sequence[int]], str]
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""In a token's text: it is a part of a character, whose bytes are not known here."""


@dataclass(frozen=True)
class Wants:
    """What the chunks of a stream hold besides text."""

    logprobs: bool
    drafts: bool

    @classmethod
    def of(cls, body: ChatRequest | CompletionRequest) -> Wants:
        return cls(body.wanted_logprobs is not None, body.options.include_drafts)

    def has(self, update: Update) -> bool:
        """Is there anything to send? A step's text may wait for the next step's."""
        return bool(update.text) or update.over or self.logprobs or self.drafts

    def drafts_of(self, update: Update, decode: Decode) -> Json:
        """The extension `pipo`: what this step drafted, and counts so far."""
        if not self.drafts:
            return {}
        slot = update.slot
        tokens = [
            {"text": piece.text, "draft": confidence is not None, "confidence": confidence}
            for piece, confidence in update.tokens
        ]
        rejected = []
        if slot is not None and slot.draft is not None and not slot.accepted:
            rejected = [{"text": decode([slot.draft]), "confidence": slot.confidence}]
        counts = {"steps": update.steps, "completion_tokens": update.completion_tokens}
        return {"pipo": {"tokens": tokens, "rejected": rejected, **counts}}


def head(answers: Answers, kind: str) -> Json:
    """What every reply and chunk begins with."""
    return {"id": answers.id, "object": kind, "created": answers.created, "model": answers.model}


def chat_reply(answers: Answers, decode: Decode, is_pipo: bool) -> Json:
    """A whole `chat.completion`."""
    choices = [
        {
            "index": g.number,
            "message": {"role": "assistant", "content": g.text.text},
            "logprobs": _chat_logprobs(g.member.logprobs, decode) if g.rules.top_logprobs is not None else None,
            "finish_reason": g.member.finish_reason,
        }
        for g in answers.generations
    ]
    return head(answers, "chat.completion") | _body(answers, choices, is_pipo)


def text_reply(answers: Answers, decode: Decode, is_pipo: bool, echo: Sequence[str] | None) -> Json:
    """A whole `text_completion`. `echo`: the texts of the prompts, to begin with."""
    per_prompt = len(answers.generations) // len(answers.prompts)
    choices = [
        {
            "index": g.number,
            "text": (echo[g.number // per_prompt] if echo else "") + g.text.text,
            "logprobs": _text_logprobs(g.member.logprobs, decode, 0) if g.rules.top_logprobs is not None else None,
            "finish_reason": g.member.finish_reason,
        }
        for g in answers.generations
    ]
    return head(answers, "text_completion") | _body(answers, choices, is_pipo)


def _body(answers: Answers, choices: list[Json], is_pipo: bool) -> Json:
    return {"choices": choices, "usage": answers.usage, "metrics": metrics(answers, is_pipo)}


def chat_chunk(answers: Answers, update: Update, delta: Json, decode: Decode, wants: Wants) -> Json:
    """One step of a `chat.completion.chunk`."""
    logprobs = _chat_logprobs(update.logprobs, decode) if wants.logprobs else None
    choice = {"index": update.index, "delta": delta, "logprobs": logprobs, "finish_reason": update.finish_reason}
    return head(answers, "chat.completion.chunk") | {"choices": [choice | wants.drafts_of(update, decode)]}


def text_chunk(answers: Answers, update: Update, text: str, offset: int, decode: Decode, wants: Wants) -> Json:
    """One step of a streamed `text_completion`. `offset`: length of the tokens' texts before it."""
    logprobs = _text_logprobs(update.logprobs, decode, offset) if wants.logprobs else None
    choice = {"index": update.index, "text": text, "logprobs": logprobs, "finish_reason": update.finish_reason}
    return head(answers, "text_completion") | {"choices": [choice | wants.drafts_of(update, decode)]}


def usage_chunk(answers: Answers, kind: str, is_pipo: bool) -> Json:
    """The last one, where usage was asked for."""
    return head(answers, kind) | _body(answers, [], is_pipo)


def metrics(answers: Answers, is_pipo: bool) -> Json | None:
    """Of a request with one answer; times in milliseconds. None where there are several."""
    if len(answers.generations) != 1:
        return None
    generation = answers.generations[0]
    completion = generation.completion
    return {
        **_times(generation, completion),
        "speculative_decoding": speculative_decoding(completion) if is_pipo else None,
        "pipo": {"steps": completion.steps, "tokens_per_step": completion.tokens_per_step},
    }


def speculative_decoding(completion: Completion) -> Json:
    """vLLM's fields, as the plugin fills them: every step counts, so the mean acceptance length is tokens per step."""
    steps, drafted, accepted = completion.steps, completion.drafted, completion.accepted
    return {
        "mean_acceptance_length": completion.tokens_per_step,
        "draft_acceptance_rate": completion.acceptance_rate or 0.0,
        "acceptance_histogram": [steps - accepted, accepted],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": 1,
    }


def _times(generation: Generation, completion: Completion) -> Json:
    decoding = generation.finished_at - generation.first_at
    later = len(completion.token_ids) - len(completion.slots[0].tokens)
    total = generation.finished_at - generation.started_at
    return {
        "time_to_first_token_ms": 1000 * (generation.first_at - generation.arrived),
        "queue_time_ms": 1000 * (generation.started_at - generation.arrived),
        "generation_time_ms": 1000 * decoding,
        "mean_itl_ms": 1000 * decoding / later if later else None,
        "tokens_per_second": len(completion.token_ids) / total if total else None,
    }


def _chat_logprobs(entries: Sequence[TokenLogprob], decode: Decode) -> Json:
    def one(token: int, logprob: float) -> Json:
        text = decode([token])
        return {"token": text, "logprob": logprob, "bytes": None if UNKNOWN in text else list(text.encode())}

    return {
        "content": [one(e.token, e.logprob) | {"top_logprobs": [one(*best) for best in e.top]} for e in entries],
        "refusal": None,
    }


def _text_logprobs(entries: Sequence[TokenLogprob], decode: Decode, offset: int) -> Json:
    tokens = [decode([entry.token]) for entry in entries]
    offsets = [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{decode([token]): logprob for token, logprob in reversed(entry.top)} for entry in entries],
        "text_offset": offsets,
    }


def error(message: str, status: int, param: str | None = None) -> Json:
    """As OpenAI's clients expect them."""
    kinds = {401: "authentication_error", 404: "not_found_error", 500: "internal_error", 503: "overloaded_error"}
    return {
        "error": {
            "message": message,
            "type": kinds.get(status, "invalid_request_error"),
            "param": param,
            "code": status,
        }
    }
