"""`pipo sft`: supervised fine-tuning by a recipe."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from pipo_cli.quiet import log_lines

if TYPE_CHECKING:
    from pipo.runtime.recipe import RecipeT
    from pipo.training.recipe import DistillRecipe, SftRecipe

RESUME = "Go on from the last checkpoint in the recipe's output folder."
JSON = "Print what --dry-run finds out as JSON."
DRY_RUN = "Check the recipe and its data, print steps and memory, train nothing."
REPORT = "Where to log besides the terminal: tensorboard, wandb, trackio, ... (trainer.report_to)."

ConfigOption = Annotated[str, typer.Option("--config", metavar="R.yaml", help="The recipe.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[K=V]...", help="As trainer.max_steps=10.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help=RESUME)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)]
ReportOption = Annotated[str | None, typer.Option("--report-to", metavar="TRACKER", help=REPORT)]
DryRunJsonOption = Annotated[bool, typer.Option("--json", help=JSON)]


def sft(
    config: ConfigOption,
    overrides: Overrides = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    report_to: ReportOption = None,
    as_json: DryRunJsonOption = False,
) -> None:
    """Fine-tune a PIPO model, the plain base on the same data, or an MTP head for that base, by a recipe."""
    from pipo.training.recipe import SftRecipe

    recipe = read(SftRecipe, config, overrides, report_to)
    if not only_estimated(recipe, dry_run, as_json):
        from pipo.training.sft import sft as train

        train(recipe, resume=resume)
        done(recipe.output)


def only_estimated(recipe: SftRecipe | DistillRecipe, dry_run: bool, as_json: bool) -> bool:
    """Print what --dry-run finds out, where that is all that is wanted. --json is its own: training has its log."""
    if as_json and not dry_run:
        raise typer.BadParameter("goes with --dry-run; training logs into its output folder", param_hint="--json")
    if dry_run:
        print_estimate(recipe, as_json)
    return dry_run


def print_estimate(recipe: SftRecipe | DistillRecipe, as_json: bool) -> None:
    """What `--dry-run` finds out."""
    from pipo.training.plan.estimate import estimate

    plan = estimate(recipe)
    if as_json:
        typer.echo(json.dumps(plan))
        return
    for name, value in plan.items():
        typer.echo(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")


def done(folder: str) -> None:
    """Say where the result is, once however many ranks trained."""
    if rank() == 0:
        typer.echo(f"wrote {folder}")


def rank() -> int:
    """This process's number, as torchrun and accelerate set it."""
    return int(os.environ.get("RANK", "0"))


def read(kind: type[RecipeT], config: str, overrides: list[str] | None, report_to: str | None) -> RecipeT:
    """A stage's recipe, and its log on the terminal."""
    from pipo.runtime.recipe import load_recipe

    log_lines(logging.INFO if rank() == 0 else logging.ERROR)
    tracker = [] if report_to is None else [f"trainer.report_to={report_to}"]
    return load_recipe(kind, config, [*(overrides or []), *tracker])
