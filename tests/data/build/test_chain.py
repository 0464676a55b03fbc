"""From questions to the report, on a tiny model: data, SFT, distillation, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_build import Teacher
from typer.testing import CliRunner

from pipo_cli.app import app

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1}


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_whole_chain(tiny_llama, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the client of endpoints")
    monkeypatch.chdir(tmp_path)
    teacher = Teacher()
    sums = [{"question": f"what is {i} + 1", "answer": i + 1} for i in range(20)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    build = {
        "output": "data",
        "questions": {"source": "sums.jsonl"},
        "teacher": {"endpoint": teacher.endpoint, "model": "t"},
        "answers": {"samples": 2},
    }
    sft = {"model": "start", "output": "sft", "data": {"train": ["data/sft.jsonl"], "max_length": 400}}
    distill = {"model": "sft", "teacher": tiny_llama, "output": "distilled", "data": {"train": ["data/opd.jsonl"]}}
    distill |= {"rollout": {"max_new_tokens": 8}}
    for name, recipe in (
        ("build", build),
        ("sft", sft | {"trainer": TRAINER}),
        ("distill", distill | {"trainer": TRAINER}),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    assert json.loads(run("data", "build", "--config", "build.yaml", "--json"))["sft"]["trajectories"] == 36
    assert json.loads(run("data", "data/sft.jsonl", "data/opd.jsonl", "--json"))["problems"] == []
    run("convert", tiny_llama, "start")
    run("sft", "--config", "sft.yaml")
    run("distill", "--config", "distill.yaml")
    Path("aime.jsonl").write_text(json.dumps({"id": "0", "problem": "what is 1 + 1", "answer": "2"}))
    words = ["eval", "distilled", "--base", tiny_llama, "--task", "sums.jsonl,aime2025=aime.jsonl", "--limit", 3]
    words += ["--samples", 2, "--budget", "slots:8", "--thresholds", "0,2", "--output", "eval", "--json"]
    summary = json.loads(run(*words))
    assert list(summary["tasks"]) == ["sums", "aime2025"]
    assert list(summary["tasks"]["sums"]) == ["regular", "pipo@0", "pipo@2"]
    assert "pipo@2" in Path("eval/report.md").read_text()
    teacher.shutdown()
