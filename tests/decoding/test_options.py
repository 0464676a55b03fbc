"""The options of sampling: one description, and what is made from it."""

import math

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from pipo.data.build.recipe import Answers
from pipo.decoding.options import Sampling
from pipo.errors import UsageError
from pipo.training.recipe import Rollout
from pipo_cli.app import app
from pipo_cli.options import SAMPLING

BAD = [
    ("temperature", -1),
    ("temperature", math.inf),
    ("temperature", math.nan),
    ("top_p", 0),
    ("top_p", 2.0),
    ("top_k", -1),
    ("presence_penalty", math.nan),
    ("repetition_penalty", 0),
    ("repetition_penalty", math.inf),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_what_cannot_be_is_refused_by_its_flag(name, value):
    with pytest.raises(UsageError) as caught:
        Sampling.of(**{name: value})
    assert caught.value.field == f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("section", [Rollout, Answers])
@pytest.mark.parametrize(("name", "value"), BAD)
def test_recipes_refuse_the_same(section, name, value):
    with pytest.raises(ValidationError):
        section(**{name: value})


def test_answers_in_training_are_drawn():
    with pytest.raises(ValidationError):
        Rollout(temperature=0)


def test_the_command_lines_flags_are_its_fields():
    fields = Sampling.model_fields
    assert {name: default for name, (_, default, _) in SAMPLING.items()} == Sampling().model_dump()
    for name, (kind, _, text) in SAMPLING.items():
        assert fields[name].annotation is kind
        assert text.rstrip(".").lower() == str(fields[name].description).lower()


@pytest.mark.parametrize("verb", ["generate", "chat", "eval", "calibrate"])
@pytest.mark.parametrize("name", SAMPLING)
def test_every_verb_that_draws_has_them_and_refuses_with_one_line(verb, name, tiny_llama):
    flag = f"--{name.replace('_', '-')}"
    more = {"generate": ["so"], "chat": [], "eval": ["--task", "x.jsonl", "--output", "x"], "calibrate": []}[verb]
    result = CliRunner().invoke(app, [verb, tiny_llama, *more, flag, "-1" if name != "presence_penalty" else "nan"])
    assert result.exit_code == 2
    assert flag in result.stderr and len(result.stderr.splitlines()) == 1


def test_greedy_has_no_draws():
    assert Sampling(temperature=0, top_p=0.5).generate_options() == {
        "do_sample": False,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
    assert Sampling(top_k=7).generate_options()["top_k"] == 7


def test_a_section_that_is_made_from_it_draws_by_its_fields_alone():
    assert Rollout(top_k=3).draws() == Sampling(top_k=3).model_dump()
