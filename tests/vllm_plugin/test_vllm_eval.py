"""`pipo eval` with vLLM's engine: the same questions, seeds and scores as the local one's."""

import json
from dataclasses import replace

import pytest
import tiny
from served import LENGTH

from pipo.decoding.options import GREEDY
from pipo.errors import UsageError
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.options import EvalOptions
from pipo.measure.evals.run import evaluate


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tiny.base("llama", max_position_embeddings=LENGTH, head_dim=32).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def options(folder, base, tmp_path):
    task = tmp_path / "sums.jsonl"
    asked = ["1 + 1", "What is the answer to 2 + 3, and how so?", "user " * 9 + "4 - 1?", "user " * LENGTH]
    task.write_text("".join(json.dumps({"question": text, "answer": i}) + "\n" for i, text in enumerate(asked)))
    same = {"base": base, "samples": 2, "budget": Budget("slots", 12), "dtype": "float32", "batch_size": 8}
    return EvalOptions(folder, (str(task),), tmp_path / "vllm", engine="vllm", **same)


def lines(folder):
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {(line["question_id"], line["method"], line["sample_index"]): line for line in found}


def test_greedy_answers_are_the_local_engines(options):
    options = replace(options, sampling=GREEDY)
    summary = evaluate(options)
    local = replace(options, engine="local", output=options.output.parent / "local")
    evaluate(local)
    ours, theirs = lines(options.output), lines(local.output)
    assert ours.keys() == theirs.keys() and len(ours) == 4 * 2 * 2
    for key, line in ours.items():
        if "error" in line:
            assert key[0] == "3"
            continue
        assert line["text"] == theirs[key]["text"]
        assert line["steps"] == theirs[key]["steps"] <= 12 and line["accepted"] == theirs[key]["accepted"]
    failed = [line for line in ours.values() if "error" in line]
    assert failed and all("max_model_len" in line["error"] or str(LENGTH) in line["error"] for line in failed)
    assert not any(line["correct"] for line in failed)
    figures = summary["tasks"]["sums"]
    assert figures["regular"]["tokens_per_step"] == 1 < figures["pipo"]["tokens_per_step"] < 2
    assert figures["pipo"]["tpot_ms"] > 0 and figures["regular"]["ttft_ms"] > 0
    assert summary["provenance"]["engine"] == "vllm"


@pytest.mark.slow
def test_replicas_give_the_same_answers(options, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    options = replace(options, methods=("pipo",), timing=False)
    evaluate(options)
    two = replace(options, replicas=2, output=options.output.parent / "two")
    evaluate(two)
    one, other = lines(options.output), lines(two.output)
    assert one.keys() == other.keys() and len(one) == 8
    assert {key: line["text"] for key, line in one.items()} == {key: line["text"] for key, line in other.items()}


def test_a_sweep_shares_one_engine(options):
    swept = evaluate(replace(options, methods=("pipo",), thresholds=(0.0, 2.0)))["tasks"]["sums"]
    assert swept["pipo@0"]["acceptance_rate"] == 1.0
    assert swept["pipo@2"]["tokens_per_step"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("regular", "speculative")}, "speculative"),
        ({"device": "cpu"}, "--device"),
        ({"engine": "local", "replicas": 2}, "--replicas"),
    ],
)
def test_what_it_cannot_do_is_refused(options, changes, message):
    with pytest.raises(UsageError, match=message):
        evaluate(replace(options, **changes))
