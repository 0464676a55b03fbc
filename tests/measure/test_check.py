"""`pipo check`: what counts as agreement in which precision."""

import pytest
import tiny
from typer.testing import CliRunner

from pipo.measure.check import check
from pipo_cli.app import app


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    tiny.pipo(request.param).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_model_agrees_in_both_precisions(folder, dtype):
    report = check(folder, dtype=dtype)
    assert report.ok and report.tokens_compared >= 256
    assert (report.max_abs_diff < 1e-3) == (dtype == "float32")


def test_the_command_says_so_too(folder):
    assert CliRunner().invoke(app, ["check", folder, "--dtype", "bfloat16"]).exit_code == 0
