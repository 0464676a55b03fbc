"""reasoning_gym's `gsm_symbolic`: grade-school problems from all of its templates, from indices never trained on."""

from __future__ import annotations

from pipo.errors import UsageError, extra
from pipo.tasks import boxed
from pipo.tasks.question import Question
from pipo.tasks.smollm2_mix import SEED_STRIDE, SPLIT_INDEX

score = boxed.score
SIZE = 200  # questions when no number is asked for
UNITS = " Give the result as your final answer. Do not include units."  # reasoning_gym appends this


def questions(n: int, seed: int) -> list[Question]:
    """`n` questions with worked solutions; question i depends on (seed, i) only."""
    if n == 0:
        return []
    try:
        import reasoning_gym
    except ImportError:
        raise UsageError("task", "reasoning-gym is not installed", extra("eval")) from None
    found, first = [], SPLIT_INDEX + seed * SEED_STRIDE
    for i, item in enumerate(reasoning_gym.create_dataset("gsm_symbolic", size=n, seed=first)):
        solution = item["metadata"]["answer_cot"].split("####")[0].strip()
        asked = boxed.messages(item["question"].removesuffix(UNITS))
        found.append(Question(f"{seed}/{i}", "gsm_symbolic", None, asked, item["answer"], solution))
    return found
