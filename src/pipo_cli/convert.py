"""`pipo convert`: an uncompressed model becomes a PIPO model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipo_cli.options import Dtype


class Kind(StrEnum):
    """How a pair of embeddings becomes one."""

    mlp = "mlp"
    linear = "linear"


def convert(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder, hub id, GGUF file or demo-base.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    compressor: Annotated[Kind, typer.Option(help="How a pair of embeddings becomes one.")] = Kind.mlp,
    dtype: Annotated[Dtype, typer.Option(help="Precision to save in; auto keeps the base's.")] = Dtype.auto,
) -> None:
    """Write a PIPO folder around BASE's weights. Its new heads are untrained: train them with `pipo sft`."""
    from pipo.convert import convert as write

    write(base, out, compressor=compressor.value, dtype=dtype.value)
    typer.echo(f"wrote {out}")
