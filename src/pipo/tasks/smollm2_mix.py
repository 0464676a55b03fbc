"""`smollm2_mix`: a mixture of six kinds of short word problems, made for models of about 100M parameters.

Every question comes from a generator index. Training uses indices below `SPLIT_INDEX` and never a held-out wording;
evaluation uses indices from `SPLIT_INDEX` on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache, lru_cache
from random import Random

from pipo.tasks.arithmetic import spell
from pipo.tasks.question import Question
from pipo.tasks.word_problems import GENERATORS

PARTS = {
    "gsm_symbolic": 0.15,
    "chain_sum": 0.17,
    "counting": 0.17,
    "sorting": 0.17,
    "unit_change": 0.17,
    "compare": 0.17,
}
SPLIT_INDEX = 100_000_000
SIZE = 200  # questions in the canonical test set: questions(SIZE, 0)
HELD_OUT_SIZE = 100  # and in its held-out split
BLOCK = 100  # items over which the shares hold exactly
SEED_STRIDE = 1_000_000  # generator indices between two seeds


def question(part: str, index: int, held_out: bool = False) -> Question:
    """The question of `part` at a generator index; depends on nothing else."""
    worked = GENERATORS[part](index, Random(f"{part}/{index}"), held_out)
    messages = [{"role": "user", "content": worked.question}]
    solution = "\n".join([*map(spell, worked.steps), f"The answer is {worked.answer}."])
    return Question(f"{part}/{index}", "smollm2_mix", part, messages, worked.answer, solution, held_out)


@lru_cache(maxsize=64)
def _block(seed: int, number: int) -> tuple[str, ...]:
    """The parts of items number * BLOCK and on: shuffled, in exactly the shares of PARTS."""
    parts = [part for part, share in PARTS.items() for _ in range(round(share * BLOCK))]
    Random(f"{seed}/{number}").shuffle(parts)
    return tuple(parts)


def _part(seed: int, i: int) -> str:
    return _block(seed, i // BLOCK)[i % BLOCK]


def questions(n: int, seed: int, *, held_out: bool = False) -> list[Question]:
    """`n` evaluation questions, all from generator indices >= SPLIT_INDEX; `held_out` takes only held-out wordings."""
    first = SPLIT_INDEX + (seed % 2**32) * SEED_STRIDE + held_out * SEED_STRIDE // 2
    return [question(_part(seed, i), first + i, held_out) for i in range(n)]


def training_examples(n: int, seed: int, start: int = 0, drills: float = 0.0) -> Iterator[Question]:
    """Items `start` .. `n - 1` of the training stream, without those whose text is in the canonical test set.

    About a share `drills` of the items are drills of sums (`word_problems.drill`) instead.

    Item i depends on (seed, i) only, so a run may resume at any `start`. Generator indices stay below SPLIT_INDEX.
    """
    for i in range(start, n):
        part = "drill" if Random(f"drill/{seed}/{i}").random() < drills else _part(seed, i)
        item = question(part, (seed * SEED_STRIDE + i) % SPLIT_INDEX)
        if item.messages[0]["content"] not in _test_texts():
            yield item


@cache
def _test_texts() -> frozenset[str]:
    test = questions(SIZE, 0) + questions(HELD_OUT_SIZE, 0, held_out=True)
    return frozenset(item.messages[0]["content"] for item in test)


ANSWER = re.compile(r"the answer is[: ]*([^\n]{0,200})", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?")


def score(text: str, question: Question) -> tuple[str | None, bool]:
    """The last `The answer is X` in `text` as (X or None, X equals the gold answer by value)."""
    found = ANSWER.findall(text)
    if not found:
        return None, False
    answer = found[-1].strip().rstrip(".").strip()
    if "," in question.answer:
        values, gold = ([_value(part) for part in line.split(",")] for line in (answer, question.answer))
        return answer, None not in values and values == gold
    return answer, _value(answer) is not None and _value(answer) == _value(question.answer)


def _value(text: str) -> Decimal | None:
    text = text.strip()
    return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) else None
