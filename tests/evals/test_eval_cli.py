"""`pipo eval` as a command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import pipo.tasks
from pipo_cli.eval import TASKS, eval_


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("eval")(eval_)
    return app


def test_json_is_the_only_output(app, tiny_llama, tiny_pipo, tmp_path):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": 2}))
    task = ["--task", str(tmp_path / "sums.jsonl"), "--samples", "1", "--budget", "slots:3", "--base", tiny_llama]
    arguments = [tiny_pipo, *task, "--output", str(tmp_path / "out"), "--threshold", "0.5", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and again.stdout.startswith("# Evaluation of")


def test_help_lists_the_tasks_one_a_line(app):
    lines = [line.strip() for line in CliRunner().invoke(app, ["--help"]).stdout.splitlines()]
    assert all(name in lines for name in TASKS)
    assert {name.partition("[")[0] for name in TASKS[:-1]} == set(pipo.tasks.TASKS)


def test_the_module_imports_nothing_heavy():
    code = "import sys, pipo_cli.eval; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
