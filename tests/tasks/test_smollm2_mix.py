"""The mixture: determinism, the split between training and evaluation, and its score."""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import smollm2_data
from hypothesis import given
from hypothesis import strategies as st
from places import SRC

from pipo.tasks import smollm2_mix as mix
from pipo.tasks import word_problems
from pipo.tasks.question import Question

pytest.importorskip("reasoning_gym", reason="the mixture's numbers come from reasoning-gym")

DOES = {"+": operator.add, "-": operator.sub, "*": operator.mul, "x": operator.mul, "/": operator.truediv}


def text(question: Question) -> str:
    return question.messages[0]["content"]


def index(question: Question) -> int:
    return int(question.id.split("/")[1])


@pytest.fixture(scope="module")
def training() -> list[Question]:
    return list(mix.training_examples(3000, seed=1))


def test_shares_sum_to_one_and_hold_in_every_block():
    assert sum(mix.PARTS.values()) == pytest.approx(1)
    expected = {part: round(share * 200) for part, share in mix.PARTS.items()}
    assert Counter(question.part for question in mix.questions(200, seed=0)) == expected


def test_same_seed_same_questions_other_seed_others():
    assert mix.questions(50, seed=3) == mix.questions(50, seed=3)
    assert not set(map(text, mix.questions(50, seed=3))) & set(map(text, mix.questions(50, seed=4)))
    assert mix.questions(80, seed=3)[:50] == mix.questions(50, seed=3)


def test_same_questions_in_a_fresh_process():
    code = "from pipo.tasks import smollm2_mix as m; print([q.solution for q in m.questions(30, 5)])"
    path = str(SRC)
    output = subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": path}, text=True)
    assert output.strip() == str([question.solution for question in mix.questions(30, 5)])


def test_training_resumes_at_any_item(training: list[Question]):
    resumed = list(mix.training_examples(3000, seed=1, start=1234))
    assert resumed == training[-len(resumed) :]
    assert len(resumed) > 1700


def test_indices_keep_training_and_evaluation_apart(training: list[Question]):
    assert all(index(question) < mix.SPLIT_INDEX for question in training)
    for seed in (0, 1, 99, 2**31):
        for held_out in (False, True):
            assert all(index(question) >= mix.SPLIT_INDEX for question in mix.questions(20, seed, held_out=held_out))
    assert all(index(question) < mix.SPLIT_INDEX for question in mix.training_examples(50, seed=12345))


def test_no_training_text_is_in_the_test_set(training: list[Question]):
    test = mix.questions(mix.SIZE, 0) + mix.questions(mix.HELD_OUT_SIZE, 0, held_out=True)
    assert not set(map(text, training)) & set(map(text, test))
    assert len(training) > 2900


def test_ids_are_unique_within_a_set():
    for held_out in (False, True):
        ids = [question.id for question in mix.questions(300, 0, held_out=held_out)]
        assert len(set(ids)) == 300
    both = {question.id for flag in (False, True) for question in mix.questions(300, 0, held_out=flag)}
    assert len(both) == 600


def test_held_out_wordings_are_disjoint_from_the_trained():
    parts = [
        word_problems.GSM_TEMPLATES,
        word_problems.EXPRESSIONS,
        word_problems.STORIES,
        word_problems.COUNTING,
        word_problems.SORTING,
        word_problems.UNIT_CHANGE,
        *word_problems.COMPARE.values(),
    ]
    for wordings in parts:
        assert wordings.held_out and not set(wordings.trained) & set(wordings.held_out)


@pytest.mark.parametrize(
    "opening",
    [
        "Can you tell me",
        "Solve this:",
        "A library owns",
        " saved ",
        "Look at these words",
        "The cards on the table",
        "Express ",
        "Please order",
        "Of the two numbers",
    ],
)
def test_held_out_wordings_are_asked_in_evaluation_only(training: list[Question], opening: str):
    assert not any(opening in text(question) for question in training if question.part != "gsm_symbolic")
    assert any(opening in text(question) for question in mix.questions(400, 0, held_out=True))


def test_held_out_is_flagged(training: list[Question]):
    assert all(question.held_out for question in mix.questions(50, 0, held_out=True))
    assert not any(question.held_out for question in mix.questions(50, 0) + training)


def test_gold_solutions_score_as_correct_in_every_part():
    seen = set()
    for question in mix.questions(200, seed=7) + mix.questions(100, seed=7, held_out=True):
        assert question.solution is not None
        assert question.solution.splitlines()[-1] == f"The answer is {question.answer}."
        assert mix.score(question.solution, question) == (question.answer, True)
        seen.add(question.part)
    assert seen == set(mix.PARTS)


def test_steps_are_right(training: list[Question]):
    """Every sum of the parts written here is worth the result that its line ends with, and no result is negative."""
    steps = 0
    for question in training:
        for line in (question.solution or "").splitlines() if question.part != "gsm_symbolic" else []:
            *sums, result = re.findall(r"(?:^|(?<= = ))[\d+x/ -]*\d(?= = |$| [a-z]+$)", line) or [""]
            for worked in sums:
                if re.search(r" [-+x/] ", worked):
                    assert eval(worked.replace("x", "*")) == int(result) >= 0, line
                    steps += 1
    assert steps > 1500


def test_solutions_add_one_digit_at_a_time(training: list[Question]):
    """No line ends in a sum of two numbers with two digits each that are not zero."""
    for question in training:
        for line in (question.solution or "").splitlines():
            last = re.search(r"(\d+) ([-+]) (\d+) = \d+(?: [a-z]+)?$", line)
            if last and "0.5" not in line:
                a, b = (len(number.replace("0", "")) for number in (last[1], last[3]))
                assert b < 2 or (last[2] == "+" and a < 2), line


def test_drills_are_their_share_of_the_stream_and_leave_the_rest_as_it_is(training: list[Question]):
    drilled = list(mix.training_examples(3000, seed=1, drills=0.4))
    drills = [question for question in drilled if question.part == "drill"]
    assert 0.36 < len(drills) / len(drilled) < 0.44
    assert {text(question) for question in drilled if question.part != "drill"} < set(map(text, training))


def test_sums_of_drills_are_right():
    for i in range(300):
        drill = mix.question("drill", i)
        lines = re.findall(r"^(\d+) ([-+*/]) (\d+) = (?:.* = )?(\d+)$", drill.solution or "", re.MULTILINE)
        assert len(lines) == word_problems.DRILL_SUMS
        assert all(DOES[sign](int(a), int(b)) == int(result) for a, sign, b, result in lines)
        assert all(f"{a} {sign} {b}" in text(drill) for a, sign, b, _ in lines)
        assert mix.score(f"The answer is {lines[-1][3]}.", drill)[1]


def test_answers_follow_from_the_questions(training: list[Question]):
    for question in training:
        numbers = list(map(int, re.findall(r"\d+", text(question))))
        if question.part == "sorting":
            falling = "largest to smallest" in text(question)
            assert question.answer == ", ".join(map(str, sorted(numbers, reverse=falling)))
        elif question.part == "counting":
            word = text(question).split('"')[1]
            assert int(question.answer) == len(re.findall(rf"\b{word}\b", text(question))) - 1
        elif question.part == "compare":
            assert int(question.answer) in (max(numbers), min(numbers), max(numbers) - min(numbers))


def test_wrong_answers_score_as_wrong():
    for question in mix.questions(100, seed=8):
        for wrong in (f"{question.answer}1", f"1, {question.answer}", "-1", "", "many"):
            assert not mix.score(f"The answer is {wrong}.", question)[1]


def example(answer: str) -> Question:
    return Question("x/0", "smollm2_mix", None, [], answer, None)


@pytest.mark.parametrize(
    ("output", "answer", "extracted", "correct"),
    [
        ("The answer is 48.", "48", "48", True),
        ("the answer is:  48 ", "48", "48", True),
        ("The answer is 48.0.", "48", "48.0", True),
        ("The answer is 1,234.", "1234", "1,234", True),
        ("The answer is 12,34.", "1234", "12,34", False),
        ("The answer is 7.\nThe answer is 48.", "48", "48", True),
        ("The answer is 48.\nThe answer is 7.", "48", "7", False),
        ("The answer is 3,12 , 40.", "3, 12, 40", "3,12 , 40", True),
        ("The answer is 12, 3, 40.", "3, 12, 40", "12, 3, 40", False),
        ("The answer is 3, 12.", "3, 12, 40", "3, 12", False),
        ("The answer is 3, 12, .", "3, 12, 40", "3, 12,", False),
        ("The answer is", "48", "", False),
        ("48", "48", None, False),
        ("", "48", None, False),
        ("The answer is ٤٨.", "48", "٤٨", False),
    ],
)
def test_score(output: str, answer: str, extracted: str | None, correct: bool):
    assert mix.score(output, example(answer)) == (extracted, correct)


@pytest.mark.parametrize("unit", ["The answer is ", "The answer is 1", ", ", "9", "1,111", "\n", "İ", ":", "{", "-"])
@pytest.mark.parametrize("start", ["", "The answer is "])
def test_hostile_megabytes_take_bounded_time(unit: str, start: str):
    output = start + unit * (1_000_000 // len(unit))
    for answer in ("48", "3, 12, 40"):
        began = time.perf_counter()
        assert not mix.score(output, example(answer))[1]
        assert time.perf_counter() - began < 2


@given(st.text())
def test_score_takes_any_text(output: str):
    mix.score(output, example("48"))
    mix.score(f"The answer is {output}", example("3, 12, 40"))


def test_training_file_is_chat_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "train.jsonl"
    smollm2_data.main(["--n", "120", "--seed", "2", "--output", str(file)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    expected = list(mix.training_examples(120, seed=2))
    assert f"{len(rows)} examples" in capsys.readouterr().out
    assert [row["messages"][0]["content"] for row in rows] == list(map(text, expected))
    assert [row["messages"][1] for row in rows] == [{"role": "assistant", "content": q.solution} for q in expected]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(n: int, seed: int, drills: float):
        yield from islice(mix.questions(3, 0), 2)
        raise OSError("disk full")

    monkeypatch.setattr(mix, "training_examples", broken)
    with pytest.raises(OSError, match="disk full"):
        smollm2_data.write_training_file(3, 0, tmp_path / "train.jsonl")
    assert list(tmp_path.iterdir()) == []
