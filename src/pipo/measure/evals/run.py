"""A run of `pipo eval`: every question answered several times by every method, written down sample by sample.

The first questions are decoded alone, methods interleaved, so that their first samples have times; the rest in batches.
A sample's draws depend on its own seed only, so batches change no answer.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipo.decoding.engine import Completion
from pipo.measure.evals.buckets import buckets
from pipo.measure.evals.contestant import Contestant, contestants
from pipo.measure.evals.job import UNTIMED, Job
from pipo.measure.evals.metrics import Line, difference_to, summarise
from pipo.measure.evals.options import EvalOptions
from pipo.measure.evals.report import write_report
from pipo.measure.evals.sample_log import SampleLog
from pipo.runtime.progress import SampleProgress
from pipo.runtime.provenance import provenance, write_json
from pipo.tasks import Task
from pipo.tasks.question import sample_seed
from pipo.tasks.thoughts import opens_thought

log = logging.getLogger("pipo")
TIMED = 16  # questions of each task
WARM_UP_TOKENS = 8


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Run, or go on with a run, and write samples.jsonl, summary.json and report.md; returns the summary.

    At temperature 0 a question is answered once and its answer counts `samples` times. A sample that raises is wrong
    and has the line's `error`. Raises `UsageError` for bad options and for a folder that is of a different run.
    """
    options.check()
    tasks, methods = options.load_tasks(), contestants(options)
    with SampleLog(options.output, settings(options, tasks, methods)) as samples:
        try:
            Run(options, tasks, methods, samples).go()
        finally:
            for one in methods:
                one.close()
        summary = _summary(options, tasks, methods, samples)
        write_json(options.output / "summary.json", summary)
        write_report(options.output, summary, list(samples.lines.values()))
    return summary


def settings(options: EvalOptions, tasks: Sequence[Task], methods: Sequence[Contestant]) -> dict[str, Any]:
    """What has to be the same for a run to go on in a folder."""
    return {
        "model": options.model,
        "methods": [one.method for one in methods],
        "base": next((one.name for one in methods if not one.method.startswith("pipo")), None),
        "threshold": next((one.threshold for one in methods if one.method == "pipo"), None),
        "tasks": [task.name for task in tasks],
        "held_out": options.held_out,
        "questions": {task.name: _questions_hash(task) for task in tasks},
        "thresholds": list(options.thresholds) or None,
        "thinking": options.thinking,
        "samples": options.samples,
        "budget": str(options.budget),
        "sampling": options.draws(),
        "seed": options.seed,
        "engine": options.engine,
        "dtype": options.load_dtype(),
        "device": options.load_device(),
        "timing": options.timing,
        "files": {one.method: one.fingerprint() for one in methods},
    }


def _questions_hash(task: Task) -> str:
    facts = [(question.id, question.messages, question.answer) for question in task.questions]
    return f"{len(facts)} questions {hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


class Run:
    """The work that a folder still lacks."""

    def __init__(
        self, options: EvalOptions, tasks: Sequence[Task], methods: Sequence[Contestant], samples: SampleLog
    ) -> None:
        self.options, self.tasks, self.methods, self.samples = options, tasks, methods, samples

    def go(self) -> None:
        """Make every missing sample."""
        total = sum(len(task.questions) for task in self.tasks) * len(self.methods) * self.options.samples
        names = {one.method for one in self.methods}
        done = sum(method in names for _, _, method, _ in self.samples.lines)
        with SampleProgress(total, done) as progress:
            self._warm_up()
            for jobs in self._schedule():
                lines = self._answer(jobs)
                self.samples.append(lines)
                progress.advance(len(lines), f"{jobs[0].task.name} {jobs[0].contestant.method}")
            if self.options.sampling.temperature == 0:
                self._repeat_greedy()
                progress.advance(total - progress.done, "greedy copies")

    def _schedule(self) -> Iterator[list[Job]]:
        """Batches of jobs, those of one method together; timed jobs come first and alone."""
        for task in self.tasks if self.options.timing else ():
            first = replace(task, questions=task.questions[:TIMED])
            yield from ([replace(job, task=task, timed=True)] for job in self._jobs([first], self.methods, range(1)))
        for task in self.tasks:
            for one in self.methods:
                jobs = sorted(self._jobs([task], [one], range(self._decoded)), key=_prompt_size)
                size = self.options.batch_size
                yield from (jobs[start : start + size] for start in range(0, len(jobs), size))

    @property
    def _decoded(self) -> int:
        """Samples of a question that are decoded."""
        return self.options.samples if self.options.sampling.temperature > 0 else 1

    def _jobs(self, tasks: Sequence[Task], methods: Sequence[Contestant], indices: Iterable[int]) -> list[Job]:
        """The jobs that still have to be done."""
        seed, keys = self.options.seed, self.samples.lines.keys()
        product = ((task, q, one, i) for task in tasks for q in task.questions for one in methods for i in indices)
        jobs = (Job(task, q, one, i, sample_seed(seed, q.id, i)) for task, q, one, i in product)
        return [job for job in jobs if job.key not in keys]

    def _warm_up(self) -> None:
        """Load what is needed, and meet what would fail in every sample before the first one."""
        missing = list(self._schedule())
        for task in {id(jobs[0].task): jobs[0].task for jobs in missing}.values():
            task.score("", task.questions[0])
        for one in {jobs[0].contestant.method: jobs[0].contestant for jobs in missing}.values():
            log.info("%s: %s", one.method, one.name)
            prompt = one.engine.encode("Hello", **self._template)
            self._complete(one, [prompt], [0], time.perf_counter(), WARM_UP_TOKENS)

    def _answer(self, jobs: Sequence[Job]) -> list[Line]:
        """Lines of a batch. Where the batch raises, its samples are tried one by one and only the bad ones fail."""
        arrived = time.perf_counter()
        one = jobs[0].contestant
        try:
            prompts = [one.engine.encode(job.question.messages, **self._template) for job in jobs]
            thoughts = [opens_thought(one.engine.tokenizer, prompt) for prompt in prompts]
            jobs = [replace(job, opened=opened) for job, opened in zip(jobs, thoughts, strict=True)]
            completions = self._complete(one, prompts, [job.seed for job in jobs], arrived)
            return self._lines(jobs, prompts, completions)
        except Exception as error:
            if len(jobs) > 1:
                return [line for job in jobs for line in self._answer([job])]
            log.warning("%s failed: %s", jobs[0].key, error)
            return [jobs[0].failed(error)]

    def _lines(
        self, jobs: Sequence[Job], prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
    ) -> list[Line]:
        """What is written down of a batch."""
        return [job.line(full, self.options.budget) for job, full in zip(jobs, completions, strict=True)]

    @property
    def _template(self) -> dict[str, bool]:
        """What the chat template is told."""
        return {} if self.options.thinking is None else {"thinking": self.options.thinking}

    def _complete(
        self,
        one: Contestant,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        arrived: float,
        max_new_tokens: int | None = None,
    ) -> list[Completion]:
        return one.complete(
            prompts,
            sampling=self.options.sampling,
            max_new_tokens=max_new_tokens or self.options.budget.max_new_tokens(one.tokens_per_slot),
            seeds=seeds,
            arrived=arrived,
        )

    def _repeat_greedy(self) -> None:
        """Count every decoded answer `samples` times, times left out."""
        jobs = self._jobs(self.tasks, self.methods, range(1, self.options.samples))
        self.samples.append([self.samples.lines[(*job.key[:3], 0)] | job.head() | UNTIMED for job in jobs])


def _prompt_size(job: Job) -> int:
    return sum(len(message["content"]) for message in job.question.messages)


def _figures(
    options: EvalOptions, task: Task, methods: Sequence[Contestant], samples: SampleLog
) -> dict[str, dict[str, Any]]:
    """A task's part of summary.json."""
    lines: dict[str, list[Line]] = {one.method: [] for one in methods}
    for line in samples.lines.values():
        if line["task"] == task.name:
            lines[line["method"]].append(line)
    figures = {}
    for method, found in lines.items():
        figures[method] = summarise(found, options.pass_k) | {"buckets": buckets(found, options.budget)}
        if "regular" in lines and method != "regular":
            figures[method] |= difference_to("regular", found, lines["regular"])
    return figures


def _summary(
    options: EvalOptions, tasks: Sequence[Task], methods: Sequence[Contestant], samples: SampleLog
) -> dict[str, Any]:
    figures = {task.name: _figures(options, task, methods, samples) for task in tasks}
    facts = settings(options, tasks, methods)
    origin = {
        name: facts[name]
        for name in (
            "model",
            "methods",
            "base",
            "threshold",
            "thresholds",
            "thinking",
            "held_out",
            "questions",
            "engine",
            "dtype",
            "device",
        )
    }
    return {
        "tasks": figures,
        "budget": facts["budget"],
        "sampling": facts["sampling"],
        "seed": options.seed,
        "provenance": provenance(**origin),
    }
