"""`pipo data`: checks chat and prompt JSONL. `pipo data build` makes it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipo_cli.options import JsonOption
from pipo_cli.quiet import log_lines, log_progress

MODEL = "Count with this model's tokenizer. Without it, only lines and turns are counted."
TEMPLATE = "An option of the chat template, as data.template in a recipe: enable_thinking=false."
LABELS = {
    "examples": "examples",
    "total": "tokens",
    "targets": "tokens that are trained on",
    "mean": "tokens an example, mean",
    "median": "tokens an example, median",
    "longest": "tokens of the longest example",
    "pairs": "pairs",
    "pads": "PADs that fill odd prompts and answers",
    "pad_share": "their share of positions",
    "training_pads": "PADs with a recipe's default rejections",
    "training_pad_share": "their share of positions",
}


def data(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Chat or prompt JSONL.")],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    template: Annotated[list[str] | None, typer.Option(metavar="K=V", help=TEMPLATE)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop with an error where a line is bad.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check chat JSONL ({"messages": [...]}) and prompt JSONL; print token, pair and PAD statistics.

    Every bad line is named as FILE:LINE, as training names it. Exits with 1 where there is one, with 2 if --strict.

    A conversation has an example for each of its answers: what was said before, as inference reads it, and the answer.
    What is tokenized is kept, so that training starts at once.

    `pipo data build --config R.yaml` makes such files from questions and a teacher, see `pipo data build --help`. A
    file called build is ./build.
    """
    from pipo.convert.base import load_tokenizer
    from pipo.convert.shipped import resolve
    from pipo.data.chat import refuse_problems
    from pipo.data.stats import Stats, collect
    from pipo.runtime.recipe import options

    if template and not model:
        raise typer.BadParameter("goes with --model, whose chat template it is for", param_hint="--template")
    log_progress()
    tokenizer = load_tokenizer(resolve(model)) if model else None
    stats: Stats = collect(files, tokenizer, template=options(template or []))
    if as_json:
        typer.echo(json.dumps(stats.to_dict(), ensure_ascii=False))
    else:
        for problem in stats.problems:
            typer.echo(problem)
        counts = stats.counts
        typer.echo(f"{counts['chats']} chats, {counts['prompts']} prompts, {len(stats.problems)} bad lines")
        typer.echo(f"{counts['turns']} turns, {counts['answers']} of them answers")
        for name, value in (stats.to_dict()["tokens"] or {}).items():
            typer.echo(f"{LABELS[name]}: {value:.3g}" if isinstance(value, float) else f"{LABELS[name]}: {value}")
    if strict:
        refuse_problems(stats.problems, "--strict")
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
