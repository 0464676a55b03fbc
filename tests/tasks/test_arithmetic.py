"""Sums worked out in small steps: every side of every equality is worth the same, the rest of a line stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipo.tasks.arithmetic import spell


def value(expression: str) -> float:
    """Python's own value of whole numbers and signs."""
    clean = expression.replace("x", "*")
    assert re.fullmatch(r"[\d+*/ -]+", clean)
    return eval(clean)


@pytest.mark.parametrize(
    ("line", "spelled"),
    [
        ("83 + 54 = 137", "83 + 54 = 83 + 50 + 4 = 133 + 4 = 137"),
        ("4 + 83 = 87", "4 + 83 = 87"),
        ("967 - 395 = 572", "967 - 395 = 967 - 300 - 90 - 5 = 667 - 90 - 5 = 577 - 5 = 572"),
        ("300 + 44 = 344 minutes", "300 + 44 = 300 + 40 + 4 = 340 + 4 = 344 minutes"),
        ("93 students - 27 girls = 66 boys.", "93 students - 27 girls = 93 - 20 - 7 = 73 - 7 = 66 boys."),
        ("cost 5 * $18 = $90.", "cost 5 * $18 = 5 * 10 + 5 * 8 = 50 + 40 = $90."),
        ("5 hours = 5 x 60 = 300 minutes", "5 hours = 5 x 60 = 300 minutes"),
        ("68/4 = 17 days", "68/4 = 40 / 4 + 28 / 4 = 10 + 7 = 17 days"),
        ("They ate 3 + 10 + 13 = 26", "They ate 3 + 10 + 13 = 13 + 13 = 13 + 10 + 3 = 23 + 3 = 26"),
        (
            "120 - 3 * 14 = 78",
            "120 - 3 * 14 = 120 - 3 * 10 - 3 * 4 = 120 - 30 - 12 = 90 - 12 = 90 - 10 - 2 = 80 - 2 = 78",
        ),
    ],
)
def test_small_steps(line: str, spelled: str):
    assert spell(line) == spelled


@pytest.mark.parametrize(
    "line",
    [
        "",
        "77 is larger than 60",
        "88*0.5=44 marbles",
        "24 pages x 3/4 = 18 pages",
        "58 / 4 = 14.5",
        "12 - 31 = -19",
        "83 + 54 = 138",
        "7 / 0 = 0",
        "First 27, then 41",
    ],
)
def test_what_is_no_sum_of_whole_numbers_or_is_wrong_stays(line: str):
    assert spell(line) == line


@given(st.lists(st.integers(0, 9999), min_size=2, max_size=4), st.lists(st.sampled_from("+-*x"), min_size=3))
def test_every_side_is_worth_the_same(terms: list[int], signs: list[str]):
    expression = str(terms[0]) + "".join(f" {sign} {term}" for sign, term in zip(signs, terms[1:], strict=False))
    result = value(expression)
    line = f"So it is {expression} = {result} in all"
    spelled = spell(line)
    assert spelled.startswith(f"So it is {expression} = ") and spelled.endswith(f" = {result} in all")
    sides = spelled[len("So it is ") : -len(" in all")].split(" = ")
    assert {value(side) for side in sides if side[0] != "-"} <= {result}


@given(st.integers(1, 500), st.integers(1, 99))
def test_quotients(quotient: int, divisor: int):
    sides = spell(f"{quotient * divisor} / {divisor} = {quotient}").split(" = ")
    assert {value(side) for side in sides} == {quotient}


@given(st.text(alphabet="0123456789 +-*/x=.,$ab", max_size=80))
def test_any_text_keeps_what_it_says(line: str):
    kept = iter(spell(line))
    assert all(character in kept for character in line)
