"""`pipo shortlist`: fewer tokens for drafts to be chosen from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipo_cli.options import JsonOption, numbers

DATA = "Chat JSONL whose answers' tokens are counted, every tenth conversation aside. May be given again."
SIZE = "Tokens in the list; of several the best is taken. Default: 1/32 to 1/2 of the vocabulary."
OUTPUT = "Folder to write, new or empty. Without it sizes are only compared."


def shortlist(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="PIPO folder, hub id or demo.")],
    data: Annotated[list[str], typer.Option(metavar="FILE", help=DATA)],
    size: Annotated[str | None, typer.Option(metavar="N[,N]", help=SIZE)] = None,
    output: Annotated[Path | None, typer.Option(metavar="OUT", help=OUTPUT)] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a model's drafts a shortlist: the tokens that answers use most. A step then reads less of the LM head.

    Special tokens and ends of answers are always in it. Prints what each size covers of the held-out answers and what
    the bytes of a step allow at best; a list that does not pay is not written. Count what the model will be asked for:
    on other text more of its drafts would lie outside.
    """
    from pipo.measure.choose_shortlist import shortlist as choose

    report = choose(model, data, [] if size is None else numbers("--size", size), output)
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print(report)
    if output is not None:
        typer.echo(f"wrote {output}, drafts from {report['best']} tokens")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="drafts from the most frequent tokens")
    for name in ("size", "counted tokens in it", "held-out tokens outside", "limit", "limit, those lost", "pays"):
        table.add_column(name, justify="right")
    table.add_row("all", "100%", "0%", *[f"{report['limit_without']:.3f}"] * 2, "")
    for row in report["sizes"]:
        table.add_row(
            str(row["size"]),
            f"{row['coverage']:.3%}",
            f"{row['outside']:.3%}",
            f"{row['limit']:.3f}",
            f"{row['expected']:.3f}",
            "yes" if row["pays"] else "no",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{report['tokens_counted']} tokens counted, {report['tokens_held_out']} held out. Limit: of the speed-up over "
        "regular decoding by the bytes of a step's weights, every draft kept; then with drafts outside the list lost."
    )
