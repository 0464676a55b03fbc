"""`pipo check` and `pipo bench` with vLLM's engine."""

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
def test_check_and_bench_in_processes_of_their_own(folder):
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
    options = ["--prompt-lengths", "64", "--new-tokens", "20", "--concurrency", "1,3", "--force-acceptance", "1.0"]
    result = pipo("bench", folder, *options, "--methods", "regular,pipo,ngram", "--trials", "1", "--dtype", "float32")
    rows = {(row["method"], row["concurrency"]): row for row in result["rows"]}
    assert len(rows) == 6 and [ratio["method"] for ratio in result["ratios"]] == ["pipo", "ngram"] * 2
    for concurrency in (1, 3):
        regular, pipo_row = rows["regular", concurrency], rows["pipo", concurrency]
        assert pipo_row["tokens_per_step"] == 2.0 and pipo_row["acceptance_rate"] == 1.0
        assert regular["tokens_per_step"] == 1.0 and regular["acceptance_rate"] is None
        assert rows["ngram", concurrency]["tokens_per_step"] >= 1.0
        assert pipo_row["kv_bytes_per_token"] / regular["kv_bytes_per_token"] == pytest.approx(4 / 6, abs=0.01)
        assert min(regular["ttft_ms"], pipo_row["ttft_ms"], regular["tpot_ms"], pipo_row["tpot_ms"]) > 0


@pytest.mark.parametrize("verb", ["check", "bench"])
def test_a_device_cannot_be_chosen(folder, verb):
    result = run(verb, folder, "--engine", "vllm", "--device", "cpu")
    assert result.exit_code == 2 and "--device" in result.stderr


def test_methods_of_the_other_engine_are_refused(folder):
    result = run("bench", folder, "--engine", "vllm", "--methods", "transformers")
    assert result.exit_code == 2 and "transformers" in result.stderr
    result = run("bench", folder, "--methods", "ngram")
    assert result.exit_code == 2 and "ngram" in result.stderr


@pytest.mark.parametrize(
    ("options", "named"), [(["--methods", "regular,pipo"], "--methods"), (["--threshold", "0.5"], "--threshold")]
)
def test_what_an_uncompressed_model_has_not(tiny_llama, options, named):
    result = run("bench", tiny_llama, "--engine", "vllm", *options)
    assert result.exit_code == 2 and named in result.stderr and "no PIPO model" in result.stderr
