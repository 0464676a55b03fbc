"""Worked sums: `83 + 54 = 137` becomes `83 + 54 = 83 + 50 + 4 = 133 + 4 = 137`, a small sum at every `=`.

A small model copies digits well and adds several at once badly, and so does a compressed one even more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Numbers and signs with at most two words (or one currency sign) after each number, up to the stated result.
EXPRESSION = re.compile(
    r"(?<![\d.,/*+x-])(?<![*/+x-] )"
    r"(?P<expression>[$€£]?\d+(?: [A-Za-z]+){0,2}(?: ?[-+*/x] ?[$€£]?\d+(?: [A-Za-z]+){0,2})+)"
    r" ?= ?[$€£]?(?P<result>\d+)(?![\d.,]*\d|/| ?[-+*/x] ?\d)"
)
TERM = re.compile(r"\d+")
SIGN = re.compile(r"(?<=[\d ])[-+*/x](?= ?[$€£]?\d)")

Terms = list[int]
Signs = list[str]


def spell(line: str) -> str:
    """`line` with every `expression = result` in it worked out in small sums; what cannot be is left as it is."""
    return EXPRESSION.sub(_worked, line)


def _worked(match: re.Match[str]) -> str:
    terms = [int(number) for number in TERM.findall(match["expression"])]
    signs = SIGN.findall(match["expression"])
    if len(signs) != len(terms) - 1:
        return match[0]
    try:
        *between, last = _reductions(terms, signs)
    except ValueError:  # a step of it is no whole number
        return match[0]
    if last != match["result"]:
        return match[0]
    steps = "".join(f" = {step}" for step in between)
    return match["expression"] + steps + match[0].removeprefix(match["expression"])


def _reductions(terms: Terms, signs: Signs) -> Iterator[str]:
    """The expression after each small step, up to its value."""
    while signs:
        at = next((i for i, sign in enumerate(signs) if sign in "*/x"), 0)
        new_terms, new_signs = _small_step(terms[at], signs[at], terms[at + 1])
        if at and signs[at - 1] == "-" and new_signs:  # a - (b + c): take the parts away one after the other
            new_signs = ["-" if sign == "+" else sign for sign in new_signs]
        terms = [*terms[:at], *new_terms, *terms[at + 2 :]]
        signs = [*signs[:at], *new_signs, *signs[at + 1 :]]
        if new_signs or not any(sign in "*/x" for sign in signs):  # products of one small step share it
            yield _written(terms, signs)


def _written(terms: Terms, signs: Signs) -> str:
    return " ".join([str(terms[0]), *(f"{sign} {term}" for sign, term in zip(signs, terms[1:], strict=True))])


def _small_step(a: int, sign: str, b: int) -> tuple[Terms, Signs]:
    """`a sign b` as one number where that is a small sum, or as a longer expression of smaller ones."""
    if sign == "+":
        if a < b and len(_parts(a)) <= len(_parts(b)) and a != 0:
            a, b = b, a
        return _split(a, "+", b)
    if sign == "-":
        if b > a:
            raise ValueError("below zero")
        return _split(a, "-", b)
    return _product(a, sign, b) if sign in "*x" else _quotient(a, b)


def _split(a: int, sign: str, b: int) -> tuple[Terms, Signs]:
    parts = _parts(b)
    if len(parts) > 1:
        return [a, *parts], [sign] * len(parts)
    return [a + b if sign == "+" else a - b], []


def _product(a: int, sign: str, b: int) -> tuple[Terms, Signs]:
    many, few = (a, b) if len(_parts(a)) > 1 and b < 10 else (b, a)
    parts = _parts(many)
    if len(parts) < 2 or few in (1, 10, 100, 1000) or (many in (11, 12) and few < 10):
        return [a * b], []
    products = [(part, few) if many == a else (few, part) for part in parts]
    return [term for product in products for term in product], [sign, "+"] * (len(parts) - 1) + [sign]


def _quotient(a: int, b: int) -> tuple[Terms, Signs]:
    if b == 0 or a % b:
        raise ValueError("no whole number")
    parts = _parts(a // b)
    if len(parts) < 2 or a // b <= 12 or b >= 10:
        return [a // b], []
    return [term for part in parts for term in (part * b, b)], ["/", "+"] * (len(parts) - 1) + ["/"]


def _parts(number: int) -> list[int]:
    """247 -> [200, 40, 7]; a number of one digit and zeros is its own part, so is 0."""
    digits = str(number)
    parts = [int(digit) * 10 ** (len(digits) - 1 - i) for i, digit in enumerate(digits)]
    return [part for part in parts if part] or [0]
