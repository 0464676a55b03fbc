"""`pipo convert`: an uncompressed model becomes a PIPO model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipo_cli.options import Dtype
from pipo_cli.quiet import log_lines


class Kind(StrEnum):
    """How a pair of embeddings becomes one."""

    mlp = "mlp"
    linear = "linear"


class Inputs(StrEnum):
    """What the confidence head sees."""

    states = "states"
    draft = "draft"


MTP_FROM = "Take the trained MTP head of this base (folder or hub id), as where a fine-tune was saved without it."
INPUTS = "What the confidence head sees: the states alone, or the drafted token and its probability too."


def convert(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder, hub id, GGUF file or demo-base.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    compressor: Annotated[Kind, typer.Option(help="How a pair of embeddings becomes one.")] = Kind.mlp,
    confidence_inputs: Annotated[Inputs, typer.Option(help=INPUTS)] = Inputs.states,
    mtp_from: Annotated[str | None, typer.Option(metavar="PATH", help=MTP_FROM)] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision to save in; auto keeps the base's.")] = Dtype.auto,
) -> None:
    """Write a PIPO folder around BASE's weights. Its new heads are untrained: train them with `pipo sft`.

    A trained MTP head is kept: the checkpoint's own (Qwen3.5), or mtp.safetensors beside the base.
    """
    from pipo.convert.folders import convert as write

    log_lines()
    inputs = confidence_inputs.value
    write(base, out, compressor=compressor.value, confidence_inputs=inputs, mtp_from=mtp_from, dtype=dtype.value)
    typer.echo(f"wrote {out}")
