"""What all verbs share: help, errors, start-up."""

import resource
import subprocess
import sys

import pytest

from pipo_cli.app import VERBS

HEAVY = ("torch", "transformers", "pydantic", "numpy")


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        f"import sys, pipo_cli; found = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(found) if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    before = _children_seconds()
    subprocess.run([sys.executable, "-m", "pipo_cli", "--help"], check=True, capture_output=True)
    assert _children_seconds() - before < 1


def _children_seconds():
    """Processor time, which does not grow with the machine's load."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(pipo, verb):
    result = pipo(verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version(pipo):
    import pipo as package

    assert pipo("--version").stdout == f"pipo {package.__version__}\n"


def test_unknown_verbs_and_options_suggest_the_nearest(refused):
    assert "'generate'" in refused("No such command", "genrate")
    assert "--temperature" in refused("No such option", "generate", "m", "hi", "--temprature", "1")


def test_missing_arguments(refused):
    assert "MODEL" in refused("Missing argument", "generate")
    assert "--config" in refused("Missing option", "sft")


@pytest.mark.parametrize("place", [0, 4])
def test_debug_shows_the_traceback(pipo, place):
    arguments = ["generate", "nowhere", "hi", "--top-p=2"]
    result = pipo(*arguments[:place], "--debug", *arguments[place:])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: --top-p: ")


def test_other_errors_exit_with_1(pipo, monkeypatch):
    def fail(*_):
        raise ValueError("first\nsecond")

    monkeypatch.setattr("pipo.measure.inspect_model.inspect_model", fail)
    result = pipo("inspect", "any")
    assert result.exit_code == 1
    assert result.stderr == "error: ValueError: first second\n"
