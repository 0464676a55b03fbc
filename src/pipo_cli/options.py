"""Options that several verbs share, and their checks."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

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
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopPOption = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability; 1 is all.")]
TopKOption = Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0 is all.")]
PresenceOption = Annotated[float, typer.Option(help="Taken from the logits of tokens already written.")]
RepetitionOption = Annotated[float, typer.Option(help="Divides the logits of tokens already seen; 1 is none.")]
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Makes the draws repeatable.")]


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
