"""What a request may say. Unknown fields, wrong types and what does not work here are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pipo.decoding.options import Sampling
from pipo.errors import UsageError
from pipo.pairing import check_threshold

COMPLETION_TOKENS = 16
"""`max_tokens` of `/v1/completions` where a request does not say it, as in OpenAI's."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def _threshold(value: Any) -> Any:
    """One rule for thresholds, here as everywhere."""
    try:
        return check_threshold(value)
    except UsageError as error:
        raise ValueError(f"{error.problem}; {error.fix}") from None


TokenIds = list[Annotated[int, Field(ge=0)]]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(_Strict):
    """`include_drafts` adds the field `pipo` to every choice of a chunk, see docs/http.md."""

    include_usage: bool = False
    include_drafts: bool = False


class ResponseFormat(_Strict):
    """Text alone: the local decoder has no grammars."""

    type: str

    @field_validator("type")
    @classmethod
    def _text(cls, value: str) -> str:
        if value != "text":
            raise ValueError(f"{value!r} is not supported by this engine; use --engine vllm")
        return value


class SamplingFields(_Strict, Sampling):
    """What chat and text completions share: the options of sampling, in OpenAI's bounds, and more. Null is nothing.

    Defaults change nothing of what the model says; the service puts the model's own in their place.
    """

    model: str | None = None
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, lt=2**32)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    confidence_threshold: Annotated[float | None, BeforeValidator(_threshold)] = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in cls.model_fields}

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float]) -> dict[str, float]:
        for key in value:
            if not key.isascii() or not key.isdigit():
                raise ValueError(f"{key!r} is no token id")
        return value

    @model_validator(mode="after")
    def _options_of_streams(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: goes with stream alone")
        return self

    @property
    def options(self) -> StreamOptions:
        """`stream_options`, or their defaults."""
        return self.stream_options or StreamOptions()

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(_Strict):
    """A part of a message; texts alone."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn. What other servers' answers carry besides (`refusal`, `tool_calls`, …) may be there as null."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: str = Field(min_length=1)
    content: str | list[TextPart]

    @model_validator(mode="after")
    def _nothing_else(self) -> Message:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, []):
                raise ValueError(f"{name}: is not supported by this engine")
        return self

    def plain(self) -> dict[str, str]:
        """For the chat template; parts are joined by line breaks."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("are not supported by this engine; use --engine vllm with its tool parsers")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _no_choice(cls, value: Any) -> Any:
        if value not in (None, "none"):
            raise ValueError(f"{value!r} is not supported by this engine; use --engine vllm with its tool parsers")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: goes with logprobs alone")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most; None is what the model's length allows."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives each token's log-probability comes with; None: none are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)] | TokenIds | list[str] | list[TokenIds]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, value: str | list[Any]) -> str | list[Any]:
        if not value or (isinstance(value, list) and any(part in ("", []) for part in value)):
            raise ValueError("is empty")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs: does not go with echo: a prompt is read in pairs and has none")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or many texts or lists of ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)

    @property
    def limit(self) -> int | None:
        """Tokens of an answer at most."""
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """As in `ChatRequest`."""
        return self.logprobs


def explain(errors: list[Any]) -> tuple[str, str]:
    """pydantic's errors -> the first field in question, and a message that names them all."""
    lines = list(dict.fromkeys(_line(error) for error in errors))
    return lines[0].split(":")[0], "; ".join(lines)


def _line(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "body" and not _is_variant(part))
    if error["type"] == "value_error":  # ours; of checks across fields it names the field itself
        message = error["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    if not where:
        return f"body: {error['msg']}; send a JSON object as application/json"
    message = {"extra_forbidden": "unknown field", "missing": "is missing"}.get(error["type"], error["msg"])
    return f"{where}: {message}"


def _is_variant(part: Any) -> bool:
    """pydantic names the member of a union, which is no field of the request."""
    return isinstance(part, str) and (part in ("str", "float", "int", "bool") or "[" in part or "-" in part)
