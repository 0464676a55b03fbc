"""The card of a built data set: what it is made of and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipo.data.build.recipe import BuildRecipe
from pipo.runtime.provenance import write_text

CARD = """# {name}

Made by `pipo data build`: a teacher's answers to questions, checked.

| | |
|---|---|
| questions | {questions} of {source}{skipped} |
| teacher | {teacher}, {samples} answers a question |
| sampling | {sampling} |
| answers | {made} made, {finished} finished, {correct} of these correct |
| teacher's accuracy | {accuracy} |

## sft.jsonl

{kept} of the first {sft_questions} questions: {trajectories} conversations over {covered} questions.
Tokens of an answer: mean {mean}, median {median}, standard deviation {sd}, longest {longest}; {tokens} in all.

## opd.jsonl

{prompts} prompts, of the last {opd_questions} questions those that the teacher answers rightly at least {least} of the
time.

## How answers were checked

An answer counts by what follows its thoughts, and only when it is finished. {checked}
The answers and verdicts themselves are in answers.jsonl and checks.jsonl, the command and versions in provenance.json.
"""

PROGRAMS = "Programs passed every test of their question, in the sandbox ({protection})."
MATHEMATICS = "Mathematics was compared by value, with math-verify."
NOTHING = "Nothing else was checked: every finished answer is called correct."


def write_card(folder: Path, recipe: BuildRecipe, statistics: dict[str, Any], protection: str | None) -> None:
    """README.md in the data set's folder. `protection`: of the sandbox, None where no program was run."""
    answers, sft, opd = statistics["answers"], statistics["sft"], statistics["opd"]
    skipped = ", ".join(f"{number} with {reason}" for reason, number in statistics["skipped"].items())
    draws = recipe.answers.model_dump(exclude={"samples", "prefix"}, exclude_none=True)
    text = CARD.format(
        name=folder.name,
        questions=statistics["questions"],
        source=recipe.questions.source,
        skipped=f" (left out: {skipped})" if skipped else "",
        teacher=recipe.teacher.model,
        samples=recipe.answers.samples,
        sampling=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in draws.items()),
        made=answers["made"],
        finished=answers["finished"],
        correct=answers["correct"],
        accuracy=_share(answers["teacher_accuracy"]),
        kept="The shortest correct answer" if recipe.select.sft == "shortest" else "All correct answers",
        sft_questions=sft["questions"],
        covered=sft["covered"],
        trajectories=sft["trajectories"],
        tokens=sft["tokens"],
        mean=_number(sft["tokens_mean"]),
        median=_number(sft["tokens_median"]),
        sd=_number(sft["tokens_sd"]),
        longest=_number(sft["tokens_longest"]),
        opd_questions=opd["questions"],
        least=_share(recipe.select.min_accuracy),
        prompts=opd["prompts"],
        checked=_checked(recipe.questions.format, protection),
    )
    write_text(folder / "README.md", text)


def _checked(form: str, protection: str | None) -> str:
    if form == "prompts":
        return NOTHING
    return MATHEMATICS if protection is None else PROGRAMS.format(protection=protection)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
