"""Answers in OpenAI's own types, with vLLM's per-request metrics and our drafts as further fields.

A field is sent where it is set here, null or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openai.types import Completion, CompletionChoice, ErrorObject, Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from pipo.decoding.engine import Completion as Answer
from pipo.decoding.shared import TokenLogprob
from pipo.decoding.text_stream import UNKNOWN
from pipo.serving.generation import Generation, Sent, Update
from pipo.serving.protocol import ChatRequest, CompletionRequest
from pipo.serving.service import Answers, Service

Json = dict[str, Any]
Chunk = ChatCompletionChunk | Completion
Spell = Callable[[int], str]
"""A token -> its text."""


class TextChoice(CompletionChoice):
    """OpenAI's type knows no choice that goes on, though its server streams them."""

    finish_reason: Literal["stop", "length"] | None


class Error(ErrorObject):
    """`code` is the status, as in vLLM."""

    code: int


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
        return bool(update.tokens) or update.over or self.drafts

    def drafts_of(self, update: Update, spell: Spell) -> Json:
        """The extension `pipo`: what this step drafted, and counts so far."""
        if not self.drafts:
            return {}
        slot = update.slot
        tokens = [
            {"text": sent.piece.text, "draft": sent.confidence is not None, "confidence": sent.confidence}
            for sent in update.tokens
        ]
        rejected = []
        if slot is not None and slot.draft is not None and not slot.accepted:
            rejected = [{"text": spell(slot.draft), "confidence": slot.confidence}]
        counts = {"steps": update.steps, "completion_tokens": update.completion_tokens}
        return {"pipo": {"tokens": tokens, "rejected": rejected, **counts}}


def head(answers: Answers) -> Json:
    """What every reply and chunk begins with."""
    return {"id": answers.id, "created": answers.created, "model": answers.model}


def chat_reply(answers: Answers, spell: Spell, is_pipo: bool) -> ChatCompletion:
    """A whole one."""
    choices = [
        chat_completion.Choice(
            index=g.number,
            message=ChatCompletionMessage(role="assistant", content=g.text.text),
            logprobs=_chat_logprobs(g.sent, spell) if _wants_logprobs(g) else None,
            finish_reason=g.member.finish_reason,
        )
        for g in answers.generations
    ]
    return ChatCompletion(**head(answers), object="chat.completion", choices=choices, **_totals(answers, is_pipo))


def text_reply(answers: Answers, spell: Spell, is_pipo: bool, echo: Sequence[str] | None) -> Completion:
    """A whole one. `echo`: the texts of the prompts, to begin with."""
    per_prompt = len(answers.generations) // len(answers.prompts)
    choices = [
        CompletionChoice(
            index=g.number,
            text=(echo[g.number // per_prompt] if echo else "") + g.text.text,
            logprobs=_text_logprobs(g.sent, spell) if _wants_logprobs(g) else None,
            finish_reason=g.member.finish_reason,
        )
        for g in answers.generations
    ]
    return Completion(**head(answers), object="text_completion", choices=choices, **_totals(answers, is_pipo))


def _wants_logprobs(generation: Generation) -> bool:
    return generation.rules.request.wanted_logprobs is not None


def _totals(answers: Answers, is_pipo: bool) -> Json:
    return {"usage": answers.usage, "metrics": metrics(answers, is_pipo)}


def chat_chunk(answers: Answers, update: Update, first: bool, spell: Spell, wants: Wants) -> ChatCompletionChunk:
    """One step of a chat's answer."""
    choice = chat_completion_chunk.Choice(
        index=update.index,
        delta={"role": "assistant", "content": update.text} if first else {"content": update.text},
        logprobs=_chat_logprobs(update.tokens, spell) if wants.logprobs else None,
        finish_reason=update.finish_reason,
        **wants.drafts_of(update, spell),
    )
    return ChatCompletionChunk(**head(answers), object="chat.completion.chunk", choices=[choice])


def chat_end(answers: Answers, is_pipo: bool) -> ChatCompletionChunk:
    """The last one, where usage was asked for."""
    return ChatCompletionChunk(**head(answers), object="chat.completion.chunk", choices=[], **_totals(answers, is_pipo))


def text_chunk(answers: Answers, update: Update, text: str, spell: Spell, wants: Wants) -> Completion:
    """One step of an answer to a text."""
    choice = TextChoice(
        index=update.index,
        text=text,
        logprobs=_text_logprobs(update.tokens, spell) if wants.logprobs else None,
        finish_reason=update.finish_reason,
        **wants.drafts_of(update, spell),
    )
    return Completion(**head(answers), object="text_completion", choices=[choice])


def text_end(answers: Answers, is_pipo: bool) -> Completion:
    """As `chat_end`."""
    return Completion(**head(answers), object="text_completion", choices=[], **_totals(answers, is_pipo))


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


def speculative_decoding(completion: Answer) -> Json:
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


def _times(generation: Generation, completion: Answer) -> Json:
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


def _chat_logprobs(tokens: Sequence[Sent], spell: Spell) -> Json:
    """For a whole choice or a streamed one: OpenAI has a type for each."""

    def one(token: int, logprob: float) -> Json:
        text = spell(token)
        return {"token": text, "logprob": logprob, "bytes": None if UNKNOWN in text else list(text.encode())}

    content = [
        ChatCompletionTokenLogprob(**one(e.token, e.logprob), top_logprobs=[TopLogprob(**one(*best)) for best in e.top])
        for e in _logprobs(tokens)
    ]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[Sent], spell: Spell) -> Logprobs:
    entries = _logprobs(tokens)
    return Logprobs(
        tokens=[spell(entry.token) for entry in entries],
        token_logprobs=[entry.logprob for entry in entries],
        top_logprobs=[{spell(token): logprob for token, logprob in reversed(entry.top)} for entry in entries],
        text_offset=[sent.piece.start for sent in tokens],
    )


def _logprobs(tokens: Sequence[Sent]) -> list[TokenLogprob]:
    return [sent.logprob for sent in tokens if sent.logprob is not None]


def card(service: Service) -> Model:
    """`confidence_threshold` is what requests get that name none; null for an uncompressed model."""
    return Model(
        id=service.name,
        object="model",
        created=service.created,
        owned_by="pipo",
        max_model_len=service.max_model_len,
        confidence_threshold=service.threshold if service.engine.is_pipo else None,
    )


def error(message: str, status: int, param: str | None = None) -> Json:
    """As OpenAI's clients expect them."""
    kinds = {401: "authentication_error", 404: "not_found_error", 500: "internal_error", 503: "overloaded_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": Error(message=message, type=kind, param=param, code=status).to_dict()}
