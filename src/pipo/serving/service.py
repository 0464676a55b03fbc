"""From a checked request to its answers: prompts, limits, defaults."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from openai.types import CompletionUsage

from pipo.decoding.engine import LocalEngine
from pipo.decoding.loop import make_reader
from pipo.decoding.reader import position_limit
from pipo.decoding.text_stream import token_text
from pipo.errors import UsageError, first_line
from pipo.pairing import chosen_threshold
from pipo.serving.generation import Generation, Rules, Update
from pipo.serving.protocol import ChatRequest, CompletionRequest
from pipo.serving.scheduler import Scheduler

OF_THE_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What generation_config.json may say in the place of a request that does not."""


class UnknownModel(Exception):
    """A request for a model that is not served here."""


class Failed(Exception):
    """Decoding raised an error, or the server goes down."""


@dataclass(frozen=True)
class Limits:
    """What the server takes on."""

    max_model_len: int | None = None  # tokens of prompt and answer; None: what the model can
    max_num_seqs: int = 16
    max_waiting: int = 64
    max_body_bytes: int = 4 * 2**20


class Answers:
    """The answers to one request, while they are made."""

    def __init__(self, kind: str, name: str, prompts: Sequence[list[int]], arrived: float) -> None:
        self.id, self.created, self.model = f"{kind}-{uuid.uuid4().hex}", int(time.time()), name
        self.prompts, self.arrived = prompts, arrived
        self.generations: list[Generation] = []
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def deliver(self, update: Update) -> None:
        """From the decoding thread; when the server's loop is closed, nobody listens any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, update)

    async def updates(self) -> AsyncIterator[Update]:
        """Until all answers are over. Raises `Failed`."""
        left = len(self.generations)
        while left:
            update = await self._queue.get()
            if update.error is not None:
                raise Failed(update.error)
            yield update
            left -= update.over

    @property
    def usage(self) -> CompletionUsage:
        """Real tokens; a prompt counts once, however many answers it gets."""
        prompt = sum(map(len, self.prompts))
        completion = sum(g.member.length - len(g.member.prompt) for g in self.generations)
        return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Service:
    """A model, its queue, and the rules of requests. Raises `UsageError` for what it refuses."""

    def __init__(
        self, engine: LocalEngine, scheduler: Scheduler, name: str, threshold: float | None, max_model_len: int | None
    ) -> None:
        self.engine, self.scheduler, self.name = engine, scheduler, name
        self.created = int(time.time())
        config = engine.model.generation_config
        self.threshold = chosen_threshold(threshold, getattr(config, "confidence_threshold", None))
        own = {field: getattr(config, field, None) for field in OF_THE_MODEL}
        self.defaults = {field: value for field, value in own.items() if value is not None}
        self.eos = frozenset(engine.ends or ())
        self.max_model_len = model_length(engine.model, max_model_len)
        self.vocabulary = engine.model.get_output_embeddings().weight.shape[0]
        self._tokenizing = ThreadPoolExecutor(1, "pipo-tokenizer")  # one, since fast tokenizers are not for threads

    async def chat(self, request: ChatRequest, arrived: float) -> Answers:
        """Start the answers to a conversation. Raises `Busy`."""
        self._check_model(request.model)
        options = request.chat_template_kwargs or {}
        messages = [message.plain() for message in request.messages]
        prompt = await self._in_thread(self._render, messages, options)
        return self._start("chatcmpl", request, [self._checked(prompt, "messages")], arrived)

    async def complete(self, request: CompletionRequest, arrived: float) -> Answers:
        """Start the answers to one or many texts. Raises `Busy`."""
        self._check_model(request.model)
        prompts = [await self._in_thread(self._encode, prompt) for prompt in request.prompts]
        return self._start("cmpl", request, [self._checked(prompt, "prompt") for prompt in prompts], arrived)

    def decode(self, tokens: Sequence[int]) -> str:
        """A prompt's tokens -> text, special ones too."""
        text: str = self.engine.tokenizer.decode(list(tokens))
        return text

    def spell(self, token: int) -> str:
        """A token by itself."""
        return token_text(self.engine.tokenizer, token)

    def close(self) -> None:
        """End the threads."""
        self.scheduler.close()
        self._tokenizing.shutdown()

    async def _in_thread(self, work: Any, *args: Any) -> list[int]:
        ids: list[int] = await asyncio.get_running_loop().run_in_executor(self._tokenizing, work, *args)
        return ids

    def _render(self, messages: list[dict[str, str]], options: dict[str, Any]) -> list[int]:
        reserved = {*inspect.signature(self.engine.tokenizer.apply_chat_template).parameters, "messages"}
        for name in options:
            if name in reserved:
                raise UsageError(f"chat_template_kwargs.{name}", "cannot be set", "leave it out")
        try:
            return self.engine.encode(messages, **options)
        except (TemplateError, UnicodeEncodeError, TypeError, ValueError) as error:
            raise UsageError("messages", f"the chat template fails ({first_line(error)})", "change them") from error

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        try:
            ids: list[int] = self.engine.tokenizer(prompt)["input_ids"]
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            raise UsageError("prompt", f"is no text ({first_line(error)})", "send valid Unicode") from error
        return ids

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise UnknownModel(name)

    def _checked(self, ids: list[int], field: str) -> list[int]:
        pad = self.engine.model.config.pad_token_id if self.engine.is_pipo else None
        if not ids:
            raise UsageError(field, "has no tokens", "write something")
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise UsageError(field, f"token ids outside 0 to {self.vocabulary - 1}", "use the model's tokenizer")
        if pad in ids:
            raise UsageError(field, f"PAD ({pad}) inside a prompt", "remove it; PAD is put in by the decoder alone")
        if len(ids) >= self.max_model_len:
            problem = f"{len(ids)} tokens, the server takes {self.max_model_len} for prompt and answer"
            raise UsageError(field, problem, "shorten it")
        return ids

    def _start(self, kind: str, request: Any, prompts: Sequence[list[int]], arrived: float) -> Answers:
        answers = Answers(kind, self.name, prompts, arrived)
        total = len(prompts) * request.n
        if total > self.scheduler.capacity:
            problem = f"{total} answers, the server takes {self.scheduler.capacity} at a time"
            raise UsageError("n", problem, "ask for less")
        for prompt in prompts:
            rules = self._rules(request, len(prompt))
            for _ in range(request.n):
                answers.generations.append(
                    Generation(
                        prompt,
                        rules,
                        len(answers.generations),
                        tokenizer=self.engine.tokenizer,
                        device=self.engine.model.device,
                        arrived=arrived,
                        deliver=answers.deliver,
                    )
                )
        self.scheduler.submit(answers.generations)
        return answers

    def _rules(self, request: ChatRequest | CompletionRequest, prompt_length: int) -> Rules:
        room = self.max_model_len - prompt_length
        if request.limit is not None and request.limit > room:
            problem = f"{request.limit} and a prompt of {prompt_length} exceed the server's {self.max_model_len} tokens"
            raise UsageError("max_tokens", problem, f"ask for {room} at most")
        if request.confidence_threshold is not None and not self.engine.is_pipo:
            raise UsageError("confidence_threshold", "the model is no PIPO model", "leave it out")
        for token in map(int, request.logit_bias):
            if token >= self.vocabulary:
                raise UsageError("logit_bias", f"no token {token}", f"ids end at {self.vocabulary - 1}")
        left_out = {field: value for field, value in self.defaults.items() if field not in request.model_fields_set}
        return Rules(
            request.model_copy(update=left_out),
            max_tokens=request.limit or room,
            threshold=self.threshold if request.confidence_threshold is None else request.confidence_threshold,
            eos=frozenset() if request.ignore_eos else self.eos,
        )


def model_length(model: Any, wanted: int | None) -> int:
    """Tokens of prompt and answer that a model takes: `wanted`, else what its positions hold. Raises `UsageError`."""
    positions = position_limit(model)
    limit = None if positions is None else positions * make_reader(model).width
    if wanted is None and limit is None:
        raise UsageError("--max-model-len", "the model states no length", "name one")
    if wanted is not None and limit is not None and wanted > limit:
        raise UsageError("--max-model-len", f"{wanted} is above the model's {limit}", "leave it out")
    return wanted or limit or 0
