"""`pipo calibrate` as a command."""

import json

import pytest


@pytest.fixture
def few(tiny_llama, tmp_path):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": 2}))
    return ("--task", tmp_path / "sums.jsonl", "--base", tiny_llama, "--max-new-tokens", 6, "--thresholds", "0,0.5")


def test_json_is_the_only_output(pipo, tiny_pipo, few, tmp_path):
    result = pipo("calibrate", tiny_pipo, *few, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "calibration.json").read_text())


def test_the_folder_has_a_name_of_its_own(pipo, damaged, few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = pipo("calibrate", damaged, *few, "--no-control", "--store", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("# Calibration of") and "wrote calibration-damaged-sums" in result.stdout
    assert (tmp_path / "calibration-damaged-sums" / "report.md").is_file()
    assert json.loads((damaged / "generation_config.json").read_text())["confidence_threshold"] == 0.5


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("--thresholds", ("--thresholds", "0.5,much")),
        ("--thresholds", ("--thresholds", "0.5,-1")),
        ("--store", ("--store", "fastest")),
        ("--store", ("--store", "0.7")),
        ("--device", ("--device", "nowhere")),
        ("--task", ("--data", "x.jsonl")),
    ],
)
def test_wrong_use(refused, tiny_pipo, few, tmp_path, field, arguments):
    refused(field, "calibrate", tiny_pipo, *few, "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_neither_task_nor_data(refused, tiny_pipo):
    refused("--task", "calibrate", tiny_pipo)


def test_the_shipped_model_is_not_written_to(refused, few):
    assert "calibrate a copy" in refused("--store", "calibrate", "demo", *few, "--store", "best")
