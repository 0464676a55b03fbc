"""One sample to make, and the line of samples.jsonl that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipo.decoding.engine import Completion
from pipo.measure.evals.buckets import correct_at
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.contestant import Contestant
from pipo.measure.evals.metrics import Line
from pipo.measure.evals.sample_log import Key
from pipo.tasks import Question, Task
from pipo.tasks.thoughts import conclusion

UNTIMED: Line = {"ttft_ms": None, "tpot_ms": None, "loop_tokens": None}
"""`loop_tokens`: the real tokens after the first step, which `tpot_ms` is the mean over."""


@dataclass(frozen=True)
class Job:
    """Sample `index` of a question by one method. `timed`: decoded alone, with its times written down.

    `opened`: the prompt ends within a thought.
    """

    task: Task
    question: Question
    contestant: Contestant
    index: int
    seed: int
    timed: bool = False
    opened: bool = False

    @property
    def key(self) -> Key:
        return self.task.name, self.question.id, self.contestant.method, self.index

    def head(self) -> Line:
        """The fields that are known before decoding."""
        return {
            "task": self.task.name,
            "part": self.question.part,
            "question_id": self.question.id,
            "method": self.contestant.method,
            "sample_index": self.index,
            "seed": self.seed,
        }

    def line(self, full: Completion, budget: Budget) -> Line:
        """The line of a completion, cut to the budget and scored."""
        kept = budget.cut(full, self._decode)
        answer, correct = self._score(kept.text)
        earlier = correct_at(kept, budget, self._decode, lambda text: self._score(text)[1])
        loop_tokens = len(full.token_ids) - len(full.slots[0].tokens)
        times = {"ttft_ms": full.ttft_ms, "tpot_ms": full.tpot_ms, "loop_tokens": loop_tokens}
        return self.head() | {
            "text": kept.text,
            "answer": answer,
            "gold": self.question.answer,
            "correct": correct,
            "completion_tokens": len(kept.token_ids),
            "steps": kept.steps,
            "drafted": kept.drafted,
            "accepted": kept.accepted,
            "finish_reason": kept.finish_reason,
            **(times if self.timed else UNTIMED),
            **({"correct_at": earlier} if earlier else {}),
        }

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.contestant.engine.tokenizer.decode(ids, skip_special_tokens=True))

    def _score(self, text: str) -> tuple[str | None, bool]:
        return self.task.score(conclusion(text, self.opened), self.question)

    def failed(self, error: Exception) -> Line:
        """The line of a sample that raised: wrong, with the error's text."""
        nothing = dict.fromkeys(("completion_tokens", "steps", "drafted", "accepted"), 0)
        line = {"text": "", "answer": None, "gold": self.question.answer, "correct": False, "finish_reason": "error"}
        return self.head() | line | nothing | UNTIMED | {"error": f"{type(error).__name__}: {error}"}
