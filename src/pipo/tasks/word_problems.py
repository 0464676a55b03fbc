"""Six kinds of short word problems with worked steps, and drills of sums, each made from a generator index.

`Wordings` marks the templates that are never trained on. Numbers come from reasoning_gym where it has a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple

from pipo.errors import UsageError, extra

NAMES = (
    "Anna Ben Carla David Emma Finn Grace Hugo Iris Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tina Victor Wendy "
    "Yusuf Zoe Amir Lucy Omar Nina Peter Sofia Tom"
).split()
OBJECTS = (
    "apples books marbles stickers coins shells pencils cards stamps buttons cookies flowers stones beads balloons "
    "oranges toys cups eggs tickets"
).split()
WORDS = (
    "apple pear plum fig lemon cat dog fox cow hen red blue green pink gold sun moon star rain snow cup fork plate "
    "chair lamp"
).split()


class Worked(NamedTuple):
    """A question with the lines of its solution and the answer that the final line states."""

    question: str
    steps: list[str]
    answer: str


@dataclass(frozen=True)
class Wordings:
    """Templates of one part; those held out are never trained on."""

    trained: tuple[Any, ...]
    held_out: tuple[Any, ...]

    def pick(self, rng: Random, held_out: bool) -> Any:
        return rng.choice(self.held_out if held_out else self.trained)


@cache
def _dataset(name: str, **config: Any) -> Any:
    """The reasoning_gym generator `name` with seed 0; its item i may be read at any i, however large."""
    try:
        import reasoning_gym
    except ImportError:
        raise UsageError("task", "reasoning-gym is not installed", extra("eval")) from None
    return reasoning_gym.create_dataset(name, seed=0, size=1, **config)


GSM_TEMPLATES = Wordings(  # reasoning_gym's template numbers; those with short, exact worked solutions
    trained=tuple(map(int, "5 10 14 16 18 20 24 26 30 31 34 39 43 45 48 54 55 57 59 62 69 70 72 78".split())),
    held_out=(12, 58, 95),
)


def gsm_symbolic(index: int, rng: Random, held_out: bool) -> Worked:
    """A grade-school problem with reasoning_gym's own worked solution."""
    generate = _dataset("gsm_symbolic").generators[GSM_TEMPLATES.pick(rng, held_out)]
    item = generate(Random(index), 1.0)
    lines = item["metadata"]["answer_cot"].split("####")[0].split("\n")
    return Worked(item["question"], [line.strip() for line in lines if line.strip()], item["answer"])


EXPRESSIONS = Wordings(
    trained=(
        "What is {}?",
        "Calculate {}.",
        "Work out {} step by step.",
        "{} = ?",
        "Please find the value of {}.",
    ),
    held_out=("Can you tell me what {} comes to?", "Solve this: {}"),
)
STORIES = Wordings(  # opening, gain, loss, closing
    trained=(
        (
            "{name} has {n} {things}.",
            "Then {name} finds {n} more.",
            "Then {name} gives away {n}.",
            "How many {things} does {name} have now?",
        ),
        (
            "A shop has {n} {things}.",
            "A delivery brings {n} more.",
            "The shop sells {n}.",
            "How many {things} are in the shop at the end?",
        ),
        (
            "There are {n} people on a bus.",
            "At a stop {n} people get on.",
            "At a stop {n} people get off.",
            "How many people are on the bus then?",
        ),
        (
            "A box holds {n} {things}.",
            "{name} puts in {n}.",
            "{name} takes out {n}.",
            "How many {things} are in the box?",
        ),
        ("Start with {n}.", "Add {n}.", "Subtract {n}.", "What number do you get?"),
        (
            "{name} scores {n} points in a game.",
            "In the next round {name} wins {n} points.",
            "In the next round {name} loses {n} points.",
            "What is the score of {name}?",
        ),
    ),
    held_out=(
        (
            "A library owns {n} books.",
            "It buys {n} new ones.",
            "Readers borrow {n}.",
            "How many books are on its shelves?",
        ),
        (
            "{name} saved {n} dollars.",
            "A week later {name} earned {n} dollars.",
            "A week later {name} spent {n} dollars.",
            "How many dollars does {name} have left?",
        ),
    ),
)


def chain_sum(index: int, rng: Random, held_out: bool) -> Worked:
    """Sums and differences with running totals that never fall below zero."""
    digits = rng.choices((1, 2, 3), (3, 6, 1))[0]
    terms = _dataset("chain_sum", min_terms=2, max_terms=4, min_digits=digits, max_digits=digits)
    first, *changes = _terms(terms[index]["metadata"]["expression"])
    steps, total = [], first
    for change in changes:
        steps.append(f"{total} {_signed(change)} = {total + change}")
        total += change
    if rng.random() < 0.4:
        expression = " ".join([str(first), *map(_signed, changes)])
        question = EXPRESSIONS.pick(rng, held_out).format(expression)
    else:
        question = _story(rng, first, changes, held_out)
    return Worked(question, steps, str(total))


def _terms(expression: str) -> list[int]:
    """`7 - 9 + 0` -> [7, 9, 2]: at least 2 each, and a term that would take the total below zero is added instead."""
    first, *rest = expression.split()
    terms = [max(2, int(first))]
    for sign, digits in zip(rest[::2], rest[1::2], strict=True):
        size = max(2, int(digits))
        terms.append(-size if sign == "-" and size <= sum(terms) else size)
    return terms


def _signed(change: int) -> str:
    return f"{'+' if change >= 0 else '-'} {abs(change)}"


def _story(rng: Random, first: int, changes: list[int], held_out: bool) -> str:
    opening, gain, loss, closing = STORIES.pick(rng, held_out)
    words = {"name": rng.choice(NAMES), "things": rng.choice(OBJECTS)}
    sentences = [opening.format(n=first, **words)]
    sentences += [(gain if change > 0 else loss).format(n=abs(change), **words) for change in changes]
    return " ".join([*sentences, closing.format(**words)])


COUNTING = Wordings(
    trained=(
        'How many times does the word "{word}" occur in this list: {items}?',
        'Count the word "{word}" in: {items}.',
        'Here is a list: {items}. How often is "{word}" in it?',
        '{name} writes down these words: {items}. How many of them are "{word}"?',
        '{name} reads aloud: {items}. How many times does {name} say "{word}"?',
    ),
    held_out=(
        'Look at these words: {items}. Tell me the number of times you see "{word}".',
        'The cards on the table show {items}. How many cards show "{word}"?',
    ),
)


def counting(index: int, rng: Random, held_out: bool) -> Worked:
    """How often a word is in a list; the solution repeats the list and numbers each find."""
    words = rng.sample(WORDS, rng.randint(2, 4))
    items = [rng.choice(words) for _ in range(rng.randint(5, 10))]
    word = rng.choice(words)
    tally = [f"{item} ({items[: i + 1].count(word)})" if item == word else item for i, item in enumerate(items)]
    question = COUNTING.pick(rng, held_out).format(word=word, items=", ".join(items), name=rng.choice(NAMES))
    return Worked(question, [", ".join(tally)], str(items.count(word)))


SORTING = Wordings(  # {order}: "from smallest to largest" or "from largest to smallest"
    trained=(
        "Sort these numbers {order}: {items}.",
        "Put {items} in order {order}.",
        "Arrange the numbers {items} {order}.",
        "{name} has cards with the numbers {items}. List them {order}.",
        "The scores in a game are {items}. Write them {order}.",
    ),
    held_out=(
        "Please order the following {order}: {items}.",
        "{name} measured {items}. How do these values read {order}?",
    ),
)


def sorting(index: int, rng: Random, held_out: bool) -> Worked:
    """Three to five whole numbers below 100, picked one after the other."""
    data = _dataset(
        "number_sorting", min_numbers=3, max_numbers=5, min_decimals=0, max_decimals=0, min_value=1, max_value=99
    )
    metadata = data[index]["metadata"]
    numbers = [int(float(number)) for number in metadata["original_numbers"]]
    rising = metadata["direction"] == "ascending"
    ordered = sorted(numbers, reverse=not rising)
    order = "from smallest to largest" if rising else "from largest to smallest"
    items = ", ".join(map(str, numbers))
    question = SORTING.pick(rng, held_out).format(order=order, items=items, name=rng.choice(NAMES))
    return Worked(question, ["First " + ", then ".join(map(str, ordered))], ", ".join(map(str, ordered)))


UNITS = (  # large unit, small unit, how many small ones make a large one, story
    ("hours", "minutes", 60, "{name} works for {amount}."),
    ("minutes", "seconds", 60, "A song lasts {amount}."),
    ("days", "hours", 24, "A trip takes {amount}."),
    ("weeks", "days", 7, "{name} stays with a friend for {amount}."),
    ("meters", "centimeters", 100, "A rope is {amount} long."),
    ("kilometers", "meters", 1000, "{name} runs {amount}."),
    ("kilograms", "grams", 1000, "A parcel weighs {amount}."),
)
UNIT_CHANGE = Wordings(
    trained=(
        "How many {unit} are {amount}?",
        "Convert {amount} to {unit}.",
        "{story} How many {unit} is that?",
        "{story} What is this in {unit}?",
        "Change {amount} into {unit}.",
    ),
    held_out=("Express {amount} in {unit}.", "{story} {name} wants to know it in {unit}. What number is it?"),
)


def unit_change(index: int, rng: Random, held_out: bool) -> Worked:
    """Hours and minutes to minutes and the like, or a whole number of small units to large ones."""
    large, small, factor, story = rng.choice(UNITS)
    count, rest, name = rng.randint(2, 9), rng.randrange(1, factor), rng.choice(NAMES)
    rest = rest if factor < 1000 else max(50, rest // 50 * 50)
    if rng.random() < 0.25:
        unit, amount, total = large, f"{count * factor} {small}", count
        steps = [f"{factor} {small} = 1 {large[:-1]}", f"{count * factor} / {factor} = {count} {large}"]
    else:
        unit, amount = small, f"{count} {large} and {rest} {small if rest > 1 else small[:-1]}"
        whole, total = count * factor, count * factor + rest
        steps = [f"{count} {large} = {count} x {factor} = {whole} {small}", f"{whole} + {rest} = {total}"]
    words = {"unit": unit, "amount": amount, "name": name, "story": story.format(name=name, amount=amount)}
    return Worked(UNIT_CHANGE.pick(rng, held_out).format(**words), steps, str(total))


COMPARE = {
    "larger": Wordings(
        trained=(
            "Which number is larger, {a} or {b}?",
            "{name} has {a} {things} and {other} has {b}. How many {things} has the one with more?",
            "What is the maximum of {a} and {b}?",
        ),
        held_out=("Of the two numbers {a} and {b}, name the bigger one.",),
    ),
    "smaller": Wordings(
        trained=(
            "Which number is smaller, {a} or {b}?",
            "{name} has {a} {things} and {other} has {b}. How many {things} has the one with fewer?",
            "What is the minimum of {a} and {b}?",
        ),
        held_out=("Of the two numbers {a} and {b}, name the lesser one.",),
    ),
    "difference": Wordings(
        trained=(
            "What is the difference between {a} and {b}?",
            "{name} has {a} {things} and {other} has {b}. How many more {things} has the one with more?",
            "How far apart are the numbers {a} and {b}?",
        ),
        held_out=("{name} is on page {a} and {other} is on page {b}. How many pages apart are they?",),
    ),
}


def compare(index: int, rng: Random, held_out: bool) -> Worked:
    """The larger, the smaller or the difference of two different numbers."""
    a, b = rng.sample(range(2, rng.choice((100, 100, 1000))), 2)
    low, high = min(a, b), max(a, b)
    kind = rng.choice(("larger", "smaller", "difference", "difference"))
    answer = {"larger": high, "smaller": low, "difference": high - low}[kind]
    steps = [f"{low} is smaller than {high}" if kind == "smaller" else f"{high} is larger than {low}"]
    steps += [f"{high} - {low} = {answer}"] if kind == "difference" else []
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": rng.choice(OBJECTS)}
    return Worked(COMPARE[kind].pick(rng, held_out).format(a=a, b=b, **words), steps, str(answer))


DRILL_SUMS = 5
DRILLS = (
    "Work out {}. What is the last result?",
    "Calculate these and tell me the last: {}.",
    "Sums: {}. The last one?",
)


def drill(index: int, rng: Random, held_out: bool) -> Worked:
    """Sums of the kinds that the other parts need, many to a conversation; for training alone."""
    sums = [_sum(rng) for _ in range(DRILL_SUMS)]
    expressions = ", ".join(expression for expression, _ in sums)
    steps = [f"{expression} = {value}" for expression, value in sums]
    return Worked(rng.choice(DRILLS).format(expressions), steps, str(sums[-1][1]))


def _sum(rng: Random) -> tuple[str, int]:
    """`a + b`, `a - b`, `a * b` or `a / b` of whole numbers, and its value: never below zero, never a fraction."""
    sign = rng.choices("+-*/", (4, 4, 1, 1))[0]
    if sign in "+-":
        a, b = (rng.randrange(2, rng.choice((10, 100, 100, 100, 500, 1000))) for _ in range(2))
        if sign == "+":
            return f"{a} + {b}", a + b
        return f"{max(a, b)} - {min(a, b)}", abs(a - b)
    a, b = rng.randrange(2, 13), rng.randrange(2, rng.choice((13, 13, 101)))
    return (f"{a} * {b}", a * b) if sign == "*" else (f"{a * b} / {b}", a)


GENERATORS: dict[str, Callable[[int, Random, bool], Worked]] = {
    "gsm_symbolic": gsm_symbolic,
    "chain_sum": chain_sum,
    "counting": counting,
    "sorting": sorting,
    "unit_change": unit_change,
    "compare": compare,
    "drill": drill,
}
