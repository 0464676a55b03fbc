"""Options that several verbs share, and their checks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipo.decoding.engine import LocalEngine


class Dtype(StrEnum):
    """Precision of the weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Engine(StrEnum):
    """What decodes."""

    local = "local"
    vllm = "vllm"


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id, GGUF file, demo or demo-base.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision. auto is float32 on a CPU, else the checkpoint's.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto is the GPU where there is one.")]
EngineOption = Annotated[Engine, typer.Option(help="What decodes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Keep drafts of at least this confidence: 0 keeps all, above 1 none. Default: the model's own."),
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
SAMPLING: dict[str, tuple[type, float, str]] = {
    "temperature": (float, 1.0, "0 is greedy."),
    "top_p": (float, 0.95, "Draw from the likeliest tokens of this total probability; 1 is all."),
    "top_k": (int, 20, "Draw from this many likeliest tokens; 0 is all."),
    "presence_penalty": (float, 0.0, "Taken from the logits of tokens already written."),
    "repetition_penalty": (float, 1.0, "Divides the logits of tokens already seen; 1 is none."),
}
"""The fields of `pipo.decoding.options.Sampling`, which takes too long to import for --help: a test compares them."""
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Makes the draws repeatable.")]


def with_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags of SAMPLING; what they say is its argument `sampling`. Raises `UsageError`."""
    own = inspect.signature(verb, eval_str=True).parameters

    @functools.wraps(verb)
    def with_flags(**given: Any) -> None:
        from pipo.decoding.options import Sampling

        verb(sampling=Sampling.of(**{name: given.pop(name) for name in SAMPLING}), **given)

    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, typer.Option(help=text)]
        )
        for name, (kind, default, text) in SAMPLING.items()
    ]
    kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.values()]
    place = list(own).index("sampling")
    with_flags.__signature__ = inspect.Signature(kept[:place] + flags + kept[place + 1 :])  # type: ignore[attr-defined]
    return with_flags


def check_threshold(value: float | None) -> float | None:
    """Return it; None is the model's own. Raises `UsageError`."""
    from pipo import pairing

    return None if value is None else pairing.check_threshold(value)


def numbers(flag: str, text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers above 0, as 128,2048", param_hint=flag)
    return values


def load_engine(model: str, dtype: Dtype, device: str, threshold: float | None) -> LocalEngine:
    """The model with its tokenizer. Raises `UsageError`, also for a threshold that the model cannot have."""
    from pipo.decoding.engine import LocalEngine
    from pipo.errors import UsageError

    engine = LocalEngine.load(model, dtype=dtype.value, device=pick_device(device))
    if threshold is not None and not engine.is_pipo:
        raise UsageError("--threshold", f"{model} is no PIPO model", "leave it out")
    return engine


def no_device(name: str) -> None:
    """vLLM has chosen its device when it was built. Raises `UsageError`."""
    from pipo.errors import UsageError

    if name != "auto":
        raise UsageError("--device", f"{name!r} cannot be chosen with --engine vllm", "leave it out")


def pick_device(name: str) -> str:
    """A device by its name. Raises `UsageError` where it cannot be used."""
    from pipo.decoding import engine

    return engine.pick_device(name)
