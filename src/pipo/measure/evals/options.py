"""What a run is asked for, checked before anything is loaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipo import tasks
from pipo.decoding.engine import pick_device
from pipo.decoding.options import Sampling
from pipo.errors import UsageError, extra
from pipo.measure.evals.budget import Budget
from pipo.pairing import check_threshold
from pipo.tasks import Task

METHODS = ("regular", "mtp", "speculative", "pipo")
ENGINES = ("local", "vllm")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class EvalOptions:
    """One run. `methods` None: regular and, for a PIPO model, pipo; `limit` None: the task's own number of questions.

    `pass_k`: the k of pass@k, None for `samples`. It may change from one call to the next on the same folder.
    `thresholds`: instead of `pipo`, a method `pipo@τ` for each. `thinking` None: as the chat template likes.
    """

    model: str
    tasks: tuple[str, ...]
    output: Path
    methods: tuple[str, ...] | None = None
    base: str | None = None
    samples: int = 4
    pass_k: int | None = None
    budget: Budget = field(default_factory=lambda: Budget("tokens", 512))
    limit: int | None = None
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    threshold: float | None = None
    thresholds: tuple[float, ...] = ()
    thinking: bool | None = None
    engine: str = "local"
    replicas: int = 1
    batch_size: int = 8
    dtype: str = "auto"
    device: str = "auto"
    held_out: bool = False
    timing: bool = True

    def check(self) -> None:
        """Raises `UsageError` for the first option that cannot be."""
        for name in self.methods or ():
            _check_name("--methods", name, METHODS)
        _check_name("--engine", self.engine, ENGINES)
        self._check_served()
        _check_name("--dtype", self.dtype, DTYPES)
        for option in ("samples", "limit", "batch_size", "pass_k", "replicas"):
            _check_count(option, getattr(self, option))
        if self.pass_k is not None and self.pass_k > self.samples:
            problem = f"{self.pass_k} is more than the samples of a question ({self.samples})"
            raise UsageError("--pass-k", problem, "lower it, or raise --samples in a new folder")
        if not 0 <= self.seed < 2**32:
            raise UsageError("--seed", f"{self.seed} is out of range", "use 0 to 4294967295")
        if self.threshold is not None:
            check_threshold(self.threshold)
        _check_sweep(self.thresholds, self.threshold)
        for package in ("matplotlib", "scipy"):
            if find_spec(package) is None:
                raise UsageError("eval", f"{package} is not installed", extra("eval"))

    def _check_served(self) -> None:
        if self.engine != "vllm":
            if self.replicas != 1:
                raise UsageError("--replicas", "goes with --engine vllm", "leave it out")
            return
        if find_spec("vllm") is None:
            raise UsageError("--engine", "vLLM is not installed", f"{extra('vllm')}, or use local")
        if self.device != "auto":
            raise UsageError("--device", f"{self.device!r} cannot be chosen with --engine vllm", "leave it out")

    def load_device(self) -> str:
        """The device by name; "auto" is the GPU if there is one."""
        return pick_device(self.device)

    def load_dtype(self) -> str:
        """The precision by name. "auto" is the model's own, but on a CPU float32, in vLLM bfloat16."""
        if self.dtype != "auto" or self.load_device() != "cpu":
            return self.dtype
        return "bfloat16" if self.engine == "vllm" else "float32"

    def load_tasks(self) -> list[Task]:
        """The tasks with their questions. Raises `UsageError`."""
        found = [self._load_task(spec) for spec in dict.fromkeys(self.tasks)]
        if not found:
            raise UsageError("--task", "names no task", f"valid: {', '.join(tasks.TASKS)} or a .jsonl path")
        names = [task.name for task in found]
        for task in found:
            if names.count(task.name) > 1:
                raise UsageError("--task", f"two tasks are named {task.name!r}", "run them apart or rename a file")
            _check_questions(task)
        return found

    def _load_task(self, spec: str) -> Task:
        if not self.held_out:
            return tasks.load(spec, self.limit, self.seed)
        from pipo.tasks import smollm2_mix as mix

        if spec != "smollm2_mix":
            raise UsageError("--held-out", f"{spec} has no held-out split", "use it with smollm2_mix alone")
        number = mix.HELD_OUT_SIZE if self.limit is None else self.limit
        return Task("smollm2_mix", mix.questions(number, self.seed, held_out=True), mix.score)

    def draws(self) -> dict[str, Any]:
        """The sampling, as summaries state it."""
        return self.sampling.draws()


def _check_name(option: str, name: str, valid: tuple[str, ...]) -> None:
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(option, f"unknown name {name!r}", f"{hint}valid: {', '.join(valid)}")


def _check_sweep(thresholds: tuple[float, ...], threshold: float | None) -> None:
    for value in thresholds:
        check_threshold(value)
    if thresholds and threshold is not None:
        raise UsageError("--thresholds", "goes without --threshold", "leave one of them out")
    names = [f"{value:g}" for value in thresholds]
    if len(set(names)) < len(names):
        raise UsageError("--thresholds", f"{', '.join(names)} names one twice", "name each once")


def _check_count(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"--{option.replace('_', '-')}", f"{value} is below 1", "use 1 or more")


def _check_questions(task: Task) -> None:
    ids = [question.id for question in task.questions]
    if not ids:
        raise UsageError("--task", f"{task.name} has no questions", "use another file")
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise UsageError("--task", f"question id {twice!r} is twice in {task.name}", "give each line an id of its own")
