"""`pipo data`: checks chat and prompt JSONL."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipo_cli.options import JsonOption

MODEL = "Count with this model's tokenizer. Without it, only lines and turns are counted."
LABELS = {
    "total": "tokens",
    "targets": "tokens that are trained on",
    "mean": "tokens a line, mean",
    "median": "tokens a line, median",
    "longest": "tokens of the longest line",
    "pairs": "pairs",
    "pads": "PADs that fill odd prompts and answers",
    "pad_share": "their share of positions",
    "training_pads": "PADs with a recipe's default rejections",
    "training_pad_share": "their share of positions",
}


def data(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Chat or prompt JSONL.")],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    as_json: JsonOption = False,
) -> None:
    """Check chat JSONL ({"messages": [...]}) and prompt JSONL; print token, pair and PAD statistics.

    Every bad line is named as FILE:LINE. Exits with 1 where there is one.
    """
    from pipo.base import load_tokenizer
    from pipo.data.stats import Stats, collect
    from pipo.shipped import resolve

    stats: Stats = collect(files, load_tokenizer(resolve(model)) if model else None)
    if as_json:
        typer.echo(json.dumps(stats.to_dict(), ensure_ascii=False))
    else:
        for problem in stats.problems:
            typer.echo(problem)
        typer.echo(f"{stats.chats} chats, {stats.prompts} prompts, {len(stats.problems)} bad lines")
        typer.echo(f"{stats.turns} turns, {stats.answers} of them answers")
        for name, value in (stats.to_dict()["tokens"] or {}).items():
            typer.echo(f"{LABELS[name]}: {value:.3g}" if isinstance(value, float) else f"{LABELS[name]}: {value}")
    if stats.problems:
        raise typer.Exit(1)
