"""`pipo distill`: on-policy distillation by a recipe."""

from __future__ import annotations

from pipo_cli.sft import (
    ConfigOption,
    DryRunJsonOption,
    DryRunOption,
    Overrides,
    ReportOption,
    ResumeOption,
    done,
    only_estimated,
    read,
)


def distill(
    config: ConfigOption,
    overrides: Overrides = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    report_to: ReportOption = None,
    as_json: DryRunJsonOption = False,
) -> None:
    """Train a PIPO model on its own answers, towards the uncompressed teacher."""
    from pipo.training.recipe import DistillRecipe

    recipe = read(DistillRecipe, config, overrides, report_to)
    if not only_estimated(recipe, dry_run, as_json):
        from pipo.training.distill.run import distill as train

        train(recipe, resume=resume)
        done(recipe.output)
