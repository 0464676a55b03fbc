"""`pipo distill`: on-policy distillation by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from pipo_cli.sft import DRY_RUN, JSON, REPORT, RESUME, check_json, done, print_estimate, read


def distill(
    config: Annotated[str, typer.Option("--config", metavar="R.yaml", help="The recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[K=V]...", help="As rollout.threshold=0.8.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    report_to: Annotated[str | None, typer.Option(metavar="TRACKER", help=REPORT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Train a PIPO model on its own answers, towards the uncompressed teacher."""
    from pipo.training.recipe import DistillRecipe

    check_json(as_json, dry_run)
    recipe = read(DistillRecipe, config, overrides, report_to)
    if dry_run:
        print_estimate(recipe, as_json)
        return
    from pipo.training.distill.run import distill as train

    train(recipe, resume=resume)
    done(recipe.output)
