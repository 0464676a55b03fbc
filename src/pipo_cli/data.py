"""`pipo data`: checks chat and prompt JSONL. `pipo data build` makes it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipo_cli.options import JsonOption
from pipo_cli.quiet import log_lines

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

    `pipo data build --config R.yaml` makes such files from questions and a teacher, see `pipo data build --help`. A
    file called build is ./build.
    """
    from pipo.convert.base import load_tokenizer
    from pipo.convert.shipped import resolve
    from pipo.data.stats import Stats, collect

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


def build(
    config: Annotated[str, typer.Option("--config", metavar="R.yaml", help="The recipe, see runs/data_*.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[K=V]...", help="As answers.samples=2.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make training data: questions, a teacher's answers, checked; sft.jsonl and opd.jsonl, statistics and a card.

    Started again with the same recipe, it goes on where it stopped. Programs run in a sandbox, and the log says which.
    """
    from pipo.data.build.build import build as make
    from pipo.data.build.recipe import BuildRecipe
    from pipo.runtime.recipe import load_recipe

    log_lines()
    recipe = load_recipe(BuildRecipe, config, overrides or [])
    statistics = make(recipe)
    if as_json:
        typer.echo(json.dumps(statistics))
    else:
        typer.echo(f"{statistics['sft']['trajectories']} conversations, {statistics['opd']['prompts']} prompts")
        typer.echo(f"wrote {recipe.output}")


class DataCommand(TyperCommand):
    """`data`, which hands over to `build` where that is its first word."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As click's."""
        if args[:1] != ["build"]:
            return super().make_context(info_name, args, parent, **extra)
        app = typer.Typer(add_completion=False)
        app.command("build")(build)
        return typer.main.get_command(app).make_context(f"{info_name} build", args[1:], parent, **extra)
