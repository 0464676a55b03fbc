"""What a calibration is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pipo.convert.shipped import SHIPPED
from pipo.data.chat import Problem, read_chats
from pipo.decoding.options import Sampling
from pipo.errors import UsageError
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.options import EvalOptions
from pipo.pairing import accepts_none, check_threshold
from pipo.runtime.cache import cache_folder
from pipo.tasks import Question, Task

THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 2.0)
BEST = "best"


@dataclass(frozen=True)
class CalibrateOptions:
    """One calibration: of a scored `task`, or of the prompts in `data`, chat JSONL without a score."""

    model: str
    output: Path
    task: str | None = None
    data: Path | None = None
    base: str | None = None
    thresholds: tuple[float, ...] = THRESHOLDS
    samples: int = 1
    limit: int | None = None
    max_new_tokens: int = 512
    seed: int = 1  # not eval's: a threshold that is chosen on a test set flatters its score there
    sampling: Sampling = field(default_factory=Sampling)
    control: bool = True
    store: float | str | None = None  # a threshold, or BEST
    margin: float = 0.01
    batch_size: int = 8
    dtype: str = "auto"
    device: str = "auto"
    held_out: bool = False

    def check(self) -> None:
        """Raises `UsageError` for the first option that cannot be."""
        if (self.task is None) == (self.data is None):
            raise UsageError("--task", "give either --task or --data", "name a task, or a chat JSONL file")
        if self.data is not None and self.held_out:
            raise UsageError("--held-out", f"{self.data} has no held-out split", "use it with --task smollm2_mix")
        if self.max_new_tokens < 1:
            raise UsageError("--max-new-tokens", f"{self.max_new_tokens} is below 1", "use 1 or more")
        if not 0 <= self.margin < float("inf"):
            raise UsageError("--margin", f"{self.margin} is no finite number >= 0", "0.01 is a point of accuracy")
        self._check_thresholds()
        self.eval_options().check()
        self._check_store()

    def _check_thresholds(self) -> None:
        if not self.thresholds:
            raise UsageError("--thresholds", "names none", "write numbers with commas between: 0.5,0.8,0.9")
        for value in self.thresholds:
            try:
                check_threshold(value)
            except UsageError as error:
                raise UsageError("--thresholds", error.problem, error.fix) from None
        same = next(((a, b) for a, b in pairwise(sorted(self.thresholds)) if a == b or accepts_none(a)), None)
        if same is not None:
            problem = f"{same[0]:g} and {same[1]:g} accept the same drafts"
            raise UsageError("--thresholds", problem, "name each point once")

    def _check_store(self) -> None:
        """Everything that would forbid storing is found before the work begins."""
        if self.store is None:
            return
        if self.store != BEST and self.store not in self.thresholds:
            raise UsageError("--store", f"{self.store} is not among the thresholds", "add it to --thresholds")
        folder = Path(self.model)
        if self.model in SHIPPED and not folder.exists():
            problem = f"{self.model} is the shipped model, its folder in the cache serves every program"
            raise UsageError("--store", problem, f"calibrate a copy of {cache_folder()}/{self.model}-*")
        if not (folder / "config.json").is_file():
            raise UsageError("--store", f"{self.model} is no local folder", "download the model, or leave --store out")
        if folder.resolve().is_relative_to(cache_folder().resolve()):
            problem = f"{self.model} lies in the cache of shipped models, which serves every program"
            raise UsageError("--store", problem, "copy the folder, or leave --store out")

    def eval_options(self) -> EvalOptions:
        """The same run in the words of `pipo eval`: the base beside the model."""
        return EvalOptions(
            model=self.model,
            tasks=() if self.task is None else (self.task,),
            output=self.output,
            methods=("regular", "pipo"),
            base=self.base,
            samples=self.samples,
            budget=Budget("tokens", self.max_new_tokens),
            limit=self.limit,
            seed=self.seed,
            sampling=self.sampling,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            held_out=self.held_out,
            timing=False,
        )

    def load_task(self) -> Task:
        """The questions, with their score where they have one. Raises `UsageError`."""
        return self.eval_options().load_tasks()[0] if self.data is None else prompts(self.data, self.limit)


def prompts(path: Path, limit: int | None) -> Task:
    """The conversations of a chat JSONL up to their last answers, as questions that nobody scores."""
    found: list[Question] = []
    for number, chat in read_chats(path, answered=False):
        if isinstance(chat, Problem):
            raise UsageError("--data", f"{chat.file}:{chat.line}: {chat.reason}", "correct the line, see `pipo data`")
        messages = chat.asked().messages
        if not messages:
            raise UsageError("--data", f"{path}:{number}: nothing before the answer", "remove the line")
        if chat.tools is not None:
            raise UsageError("--data", f"{path}:{number}: has tools, which are not offered here", "remove the line")
        found.append(Question(str(number), path.stem, None, messages, "", None))
        if len(found) == limit:
            break
    if not found:
        raise UsageError("--data", f"no prompt in {path}", "name a chat JSONL file")
    return Task(path.stem, found, lambda _text, _question: (None, False))
