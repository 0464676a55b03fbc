"""`pipo eval` as a command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from places import RUNS
from typer.testing import CliRunner

import pipo.tasks
import pipo_cli.app
from pipo_cli.eval import TASKS, eval_


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("eval")(eval_)
    return app


def test_json_is_the_only_output_and_the_log_says_how_far_it_is(app, tiny_llama, tiny_pipo, tmp_path):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": 2}))
    task = ["--task", str(tmp_path / "sums.jsonl"), "--samples", "1", "--budget", "slots:3", "--base", tiny_llama]
    arguments = [tiny_pipo, *task, "--output", str(tmp_path / "out"), "--threshold", "0.5", "--device", "cpu"]
    command = [sys.executable, "-m", "pipo_cli", "eval", *arguments, "--json"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "2 of 2 samples" in result.stderr
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and again.stdout.startswith("# Evaluation of")


def test_all_methods_from_the_recipe_to_the_report(tiny_llama, tmp_path):
    """A head is trained by the committed recipe, and found beside the base that the run wrote."""
    from pipo.convert.folders import convert

    def run(*arguments):
        return CliRunner().invoke(pipo_cli.app.app, [str(argument) for argument in arguments])

    chat = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "The answer is 2"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 4)
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": 2}))
    recipe = RUNS / "smollm2_mtp.yaml"
    data, base = f"data.train=[{tmp_path / 'chat.jsonl'}]", tmp_path / "base"
    few = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=2"]
    trained = run("sft", "--config", recipe, f"model={tiny_llama}", f"output={base}", data, *few)
    assert trained.exit_code == 0, trained.output
    convert(tiny_llama, tmp_path / "pipo")
    common = ["--task", tmp_path / "sums.jsonl", "--samples", 2, "--budget", "tokens:8", "--device", "cpu"]
    wanted = [*common, "--methods", "regular,mtp,speculative,pipo", "--output", tmp_path / "out"]
    result = run("eval", tmp_path / "pipo", *wanted, "--base", base, "--json")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["tasks"]["sums"]) == ["regular", "mtp", "speculative", "pipo"]
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    refused = run("eval", tmp_path / "pipo", *wanted[:-1], tmp_path / "none")  # config.base_model has no head
    assert refused.exit_code == 2 and "objective: mtp" in refused.stderr and not (tmp_path / "none").exists()
    k = run("eval", tmp_path / "pipo", *common, "--pass-k", 3, "--output", tmp_path / "none")
    assert k.exit_code == 2 and k.stderr.startswith("error: --pass-k: 3 is more than")


def test_help_lists_the_tasks_one_a_line(app):
    lines = [line.strip() for line in CliRunner().invoke(app, ["--help"]).stdout.splitlines()]
    assert all(name in lines for name in TASKS)
    assert {name.partition("[")[0] for name in TASKS[:-1]} == set(pipo.tasks.TASKS)


def test_the_module_imports_nothing_heavy():
    code = "import sys, pipo_cli.eval; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
