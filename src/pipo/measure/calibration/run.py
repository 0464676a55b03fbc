"""A run of `pipo calibrate`: the same questions at every threshold, with random rejection at the same rates, and by
the uncompressed base.

Every answer is judged by the uncompressed teacher as it is written down (`judge`); samples.jsonl is that of
`pipo eval`, with the threshold in the method's name. So a run goes on where it stopped, and further thresholds can be
added to a finished one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipo.convert.base import load_tokenizer
from pipo.decoding.engine import Completion
from pipo.errors import UsageError
from pipo.measure.calibration.choose import RULE, choose, mark_frontier, store, top
from pipo.measure.calibration.judge import Judge
from pipo.measure.calibration.options import BEST, CalibrateOptions
from pipo.measure.calibration.reliability import judged, of_kept, reliability
from pipo.measure.calibration.report import write_report
from pipo.measure.evals.contestant import Contestant, contestants
from pipo.measure.evals.job import Job
from pipo.measure.evals.metrics import (
    Line,
    bootstrap_ci95,
    bootstrap_ratio_ci95,
    decoding,
    difference_to,
    pass_at_k,
    per_question,
    question_means,
)
from pipo.measure.evals.run import Run, settings
from pipo.measure.evals.sample_log import SampleLog
from pipo.runtime.provenance import provenance, write_json
from pipo.tasks import Task
from pipo.training.teacher import check_same_tokens

log = logging.getLogger("pipo")
CONFIDENCE, RANDOM = "confidence", "random"
JUDGED = ("teacher_logprob", "teacher_top1")


def calibrate(options: CalibrateOptions) -> dict[str, Any]:
    """Run, or go on with a run; writes samples.jsonl, calibration.json, report.md and its plots; returns the summary.

    Raises `UsageError` for bad options and for a folder that is of a different run.
    """
    options.check()
    task = options.load_task()
    base, student = models(options)
    check_same_tokens(load_tokenizer(student.path), load_tokenizer(base.path), "--base")
    facts = settings(options.eval_options(), [task], [base, student])
    facts |= {"methods": ["calibrate"], "threshold": None}  # thresholds may be added
    with SampleLog(options.output, facts) as samples:
        swept = Sweep(options, task, base, student, samples).go()
        summary = summarise(options, task, facts, base, swept, samples)
        if summary["stored"] is not None:
            store(Path(options.model), summary["stored"])
        write_json(options.output / "calibration.json", summary)
        write_report(options.output, summary, list(samples.lines.values()))
    return summary


def models(options: CalibrateOptions) -> tuple[Contestant, Contestant]:
    """The base, as the teacher, and the PIPO model. Raises `UsageError`."""
    try:
        base, student = contestants(options.eval_options())
    except UsageError as error:
        if error.field == "--methods":
            raise UsageError("MODEL", error.problem, "convert it with `pipo convert`") from None
        fix = "give --base BASE" if error.field == "--base" else error.fix
        raise UsageError(error.field, error.problem, fix) from None
    return base, student


class Judged(Run):
    """Samples whose lines hold the teacher's opinion too."""

    judge: Judge
    scored: bool

    def _lines(
        self, jobs: Sequence[Job], prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
    ) -> list[Line]:
        lines = super()._lines(jobs, prompts, completions)
        unscored = {} if self.scored else {"correct": None}
        return [line | unscored | opinion for line, opinion in zip(lines, self.judge(completions), strict=True)]


class Sweep:
    """The points of both curves, and the base's own answers."""

    def __init__(
        self, options: CalibrateOptions, task: Task, base: Contestant, student: Contestant, samples: SampleLog
    ) -> None:
        self.options, self.task, self.base, self.student, self.samples = options, task, base, student, samples
        self.judge = Judge(student, base)

    def go(self) -> list[Contestant]:
        """Make what is missing, and return the points: first the thresholds, by which the random rates are known."""
        thresholds = sorted(self.options.thresholds)
        points = [self.student.variant(f"{CONFIDENCE}@{value!r}", value) for value in thresholds]
        self._run([self.base, *points])
        controls = (
            [found for one in points if (found := self._control(one)) is not None] if self.options.control else []
        )
        self._run(controls)
        return [*points, *controls]

    def _run(self, points: Sequence[Contestant]) -> None:
        run = Judged(self.options.eval_options(), [self.task], points, self.samples)
        run.judge, run.scored = self.judge, self.options.data is None
        run.go()

    def _control(self, point: Contestant) -> Contestant | None:
        """A coin at the rate that the confidence accepted with; None where it had no choice."""
        rate = decoding(lines_of(self.samples, point))["acceptance_rate"]
        if rate is None or rate in (0, 1):
            return None
        assert point.threshold is not None
        return self.student.variant(f"{RANDOM}@{point.threshold!r}", point.threshold, rate)


def lines_of(samples: SampleLog, point: Contestant) -> list[Line]:
    return [line for line in samples.lines.values() if line["method"] == point.method]


def summarise(
    options: CalibrateOptions,
    task: Task,
    facts: dict[str, Any],
    base: Contestant,
    points: Sequence[Contestant],
    samples: SampleLog,
) -> dict[str, Any]:
    """calibration.json."""
    field = "correct" if options.data is None else "teacher_logprob"
    lines = {one.method: lines_of(samples, one) for one in (base, *points)}
    if field != "correct":
        lines = _without_failed(lines)
    figures = {point.method: _figures(point, lines[point.method], field) for point in points}
    swept = [point for point in points if point.force_acceptance is None]
    mark_frontier([figures[point.method] for point in swept])
    best = top([figures[point.method] for point in swept])
    reference = next(lines[point.method] for point in swept if figures[point.method] is best)
    for point in swept:
        figures[point.method] |= difference_to("top", lines[point.method], reference, field)
    for point in points:
        figures[point.method] |= difference_to("regular", lines[point.method], lines[base.method], field)
        if point.force_acceptance is not None:
            beaten = f"{CONFIDENCE}@{point.threshold!r}"
            figures[beaten] |= difference_to("random", lines[beaten], lines[point.method], field)
    chosen = choose([figures[point.method] for point in swept], options.margin)
    origin = {name: facts[name] for name in ("model", "base", "held_out", "questions", "engine", "dtype", "device")}
    return {
        "model": options.model,
        "base": facts["base"],
        "task": task.name,
        "score": "avg_at_k" if field == "correct" else field,
        "regular": _figures(base, lines[base.method], field) | {"rejection": None},
        "points": list(figures.values()),
        "reliability": reliability(judged([line for point in swept for line in lines[point.method]])),
        "choice": {"threshold": chosen["threshold"], "rule": RULE.format(margin=options.margin)},
        "stored": chosen["threshold"] if options.store == BEST else options.store,
        "budget": facts["budget"],
        "sampling": facts["sampling"],
        "seed": options.seed,
        "provenance": provenance(threshold=None, **origin),
    }


def _without_failed(lines: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """Questions that every point answered: what failed has no likelihood, and points are compared on the same ones."""
    failed = {line["question_id"] for found in lines.values() for line in found if "error" in line}
    kept = {name: [line for line in found if line["question_id"] not in failed] for name, found in lines.items()}
    if not all(kept.values()):
        raise UsageError("--data", "every prompt failed at some threshold", "see samples.jsonl")
    return kept


def _figures(point: Contestant, lines: Sequence[Line], field: str) -> dict[str, Any]:
    """One point of calibration.json."""
    drafts = judged(lines)
    calibration = reliability(drafts) or dict.fromkeys(("mean_confidence", "mean_agreement", "ece", "ece_top1"))
    means = question_means(lines, field)
    counts = per_question(lines) if field == "correct" else []
    tokens, steps, accepted, drafted = (
        question_means(lines, name) for name in ("completion_tokens", "steps", "accepted", "drafted")
    )
    opinions = [line for line in lines if "error" not in line]
    return {
        "rejection": CONFIDENCE if point.force_acceptance is None else RANDOM,
        "threshold": point.threshold,
        "forced_acceptance": point.force_acceptance,
        "n_questions": len(means),
        "samples": len(lines) // len(means),
        "failed": len(lines) - len(opinions),
        "score": float(np.mean(means)),
        "score_ci95": bootstrap_ci95(means),
        "pass_at_k": float(np.mean([pass_at_k(n, right, n) for right, n in counts])) if counts else None,
        **decoding(lines),
        "tokens_per_step_ci95": bootstrap_ratio_ci95(tokens, steps),
        "acceptance_rate_ci95": bootstrap_ratio_ci95(accepted, drafted),
        **{name: float(np.mean([line[name] for line in opinions])) if opinions else None for name in JUDGED},
        **of_kept(drafts),
        **{name: calibration[name] for name in ("mean_confidence", "mean_agreement", "ece", "ece_top1")},
    }
