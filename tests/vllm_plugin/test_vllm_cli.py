"""`pipo check` with vLLM's engine, and what is refused of the others."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipo_cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_check_in_processes_of_its_own(folder):
    def pipo(*arguments):
        env = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pipo_cli", *arguments, "--engine", "vllm", "--json"],
            env=env, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    report = pipo("check", folder)
    assert report["ok"] and report["tokens_compared"] >= 256 and any("vLLM" in path for path in report["paths"])


def test_a_device_cannot_be_chosen(folder):
    result = run("check", folder, "--engine", "vllm", "--device", "cpu")
    assert result.exit_code == 2 and "--device" in result.stderr


def test_bench_refuses_the_engine(folder):
    result = run("bench", folder, "--engine", "vllm")
    assert result.exit_code == 2 and "--engine" in result.stderr
