"""`pipo import` and `pipo export`: the authors' published layout."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

BASE = "The merged folder that SRC was trained on, where SRC holds an adapter."


class Layout(StrEnum):
    """Another project's way to lay out a PIPO model."""

    authors = "authors"


def import_(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder in the authors' layout, merged or an adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="PIPO folder to write.")],
    base: Annotated[Path | None, typer.Option(help=BASE)] = None,
) -> None:
    """Read the authors' published layout and write a PIPO folder."""
    from pipo.convert.folders import import_published

    import_published(src, out, base)
    typer.echo(f"wrote {out}")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="PIPO folder or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    layout: Annotated[Layout, typer.Option(help="Whose layout.")],
) -> None:
    """Write a PIPO model in the authors' published layout."""
    from pipo.convert.folders import export as write

    write(model, out)
    typer.echo(f"wrote {out}")
