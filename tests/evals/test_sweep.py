"""Several runs in one table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipo.evals.budget import Budget
from pipo.evals.options import EvalOptions
from pipo.evals.run import evaluate
from pipo.evals.sweep import main


@pytest.fixture
def runs(tiny_llama, tiny_pipo, tmp_path):
    task = tmp_path / "sums.jsonl"
    task.write_text(json.dumps({"question": "1 + 1", "answer": 2}) + "\n" + json.dumps({"question": "3?", "answer": 3}))
    options = EvalOptions(tiny_pipo, (str(task),), tmp_path / "regular", ("regular",), tiny_llama, samples=2)
    options = replace(options, budget=Budget("tokens", 6), device="cpu", timing=False)
    evaluate(options)
    for threshold in (0.9, 0.0):
        evaluate(replace(options, output=tmp_path / f"t{threshold}", methods=("pipo",), threshold=threshold))
    return options


def test_runs_are_merged_by_threshold(runs, tmp_path):
    folders = [str(tmp_path / name) for name in ("t0.9", "regular", "t0.0")]
    assert main([*folders, "--output", str(tmp_path / "docs" / "sweep")]) == 0
    text = (tmp_path / "docs" / "sweep.md").read_text()
    assert text.index("| regular |") < text.index("| τ = 0 |") < text.index("| τ = 0.9 |")
    assert "(sweep.png)" in text and f"`regular` is {runs.base}" in text
    assert text.count("| minus regular |") == 1 and text.count("| τ = 0.9 | +0.0% |") == 1
    assert (tmp_path / "docs" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_uncompressed_methods_come_before_the_thresholds(runs, tiny_drafted, tmp_path, capsys):
    base = replace(runs, base=tiny_drafted, methods=("regular", "mtp", "speculative"), output=tmp_path / "base")
    evaluate(base)
    assert main([str(tmp_path / "t0.0"), str(base.output), "--output", str(tmp_path / "all")]) == 0
    text = (tmp_path / "all.md").read_text()
    order = [text.index(f"| {label} |") for label in ("regular", "mtp", "speculative", "τ = 0")]
    assert order == sorted(order)
    assert all(f"| {label} | +0.0% |" in text for label in ("mtp", "speculative", "τ = 0"))
    evaluate(replace(base, methods=("mtp",), output=tmp_path / "mtp"))
    for other, problem in {"base": "the model of regular changed", "mtp": "two bases"}.items():
        assert main([str(tmp_path / "regular"), str(tmp_path / other), "--output", str(tmp_path / "two")]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"samples": 1}, {"seed": 3}, {"budget": Budget("slots", 6)}])
def test_runs_that_differ_are_refused(runs, tmp_path, changes, capsys):
    evaluate(replace(runs, output=tmp_path / "other", methods=("pipo",), threshold=0.5, **changes))
    assert main([str(tmp_path / "t0.0"), str(tmp_path / "other"), "--output", str(tmp_path / "sweep")]) == 2
    assert f"differ in {next(iter(changes))}" in capsys.readouterr().err


def test_the_same_threshold_twice_is_refused(runs, tmp_path, capsys):
    assert main([str(tmp_path / "t0.0")] * 2 + ["--output", str(tmp_path / "sweep")]) == 2
    assert "two runs measured τ = 0" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--output", str(tmp_path / "sweep")]) == 2
    assert "holds no finished run" in capsys.readouterr().err
