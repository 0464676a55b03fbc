"""The command line, in this process."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipo_cli.app import app


@pytest.fixture
def pipo():
    """`pipo(*arguments, stdin=None)` -> the result, with exit_code, stdout and stderr."""

    def run(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def refused(pipo):
    """Wrong use: exit code 2, nothing on stdout, one line on stderr that begins with the field. Returns the line."""

    def run(field, *arguments, stdin=None):
        result = pipo(*arguments, stdin=stdin)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {field}"), line
        return line

    return run


@pytest.fixture
def damaged(tiny_pipo, tmp_path):
    """A copy of the tiny model's folder, to break."""
    return Path(shutil.copytree(tiny_pipo, tmp_path / "damaged"))
