"""Whole runs on tiny random models."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from pipo.decoding.engine import LocalEngine
from pipo.decoding.options import GREEDY, Sampling
from pipo.errors import UsageError
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.contestant import contestants
from pipo.measure.evals.options import EvalOptions
from pipo.measure.evals.run import evaluate
from pipo.measure.evals.sample_log import SampleLog
from pipo.model.mtp_base import save_mtp

FIELDS = (
    "task question_id method sample_index seed text answer gold correct completion_tokens steps drafted accepted "
    "finish_reason ttft_ms tpot_ms"
).split()
FIGURES = (
    "n_questions samples avg_at_k avg_at_k_ci95 pass_at_k pass_at_k_ci95 completion_tokens_mean steps_mean "
    "tokens_per_step acceptance_rate ttft_ms tpot_ms truncated"
).split()
UNTIMED = {"ttft_ms": None, "tpot_ms": None, "loop_tokens": None}


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "sums.jsonl"
    questions = ["1 + 1", "What is the answer to 2 + 3, and how so?", "user " * 9 + "4 - 1?"]
    path.write_text("".join(json.dumps({"question": text, "answer": i}) + "\n" for i, text in enumerate(questions)))
    return str(path)


@pytest.fixture
def options(tiny_llama, unsure, task, tmp_path):
    budget = Budget("tokens", 12)
    same = {"base": tiny_llama, "samples": 3, "budget": budget, "batch_size": 4, "threshold": 0.4, "device": "cpu"}
    return EvalOptions(unsure, (task,), tmp_path / "out", **same)


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def answers(folder):
    """What does not depend on the clock."""
    found = [line | UNTIMED for line in lines(folder)]
    return sorted(found, key=lambda line: (line["question_id"], line["method"], line["sample_index"]))


def test_a_run_writes_what_is_promised(options, tiny_llama):
    summary = evaluate(options)
    found = lines(options.output)
    assert len(found) == 3 * 2 * 3 and all(set(FIELDS) <= line.keys() for line in found)
    timed = [line for line in found if line["ttft_ms"] is not None]
    assert {(line["sample_index"], line["method"]) for line in timed} == {(0, "regular"), (0, "pipo")}
    assert [line["method"] for line in found[:4]] == ["regular", "pipo", "regular", "pipo"]
    assert json.loads((options.output / "summary.json").read_text()) == summary
    methods = summary["tasks"]["sums"]
    assert all(set(FIGURES) <= figures.keys() for figures in methods.values())
    assert methods["regular"]["tokens_per_step"] == 1 and methods["regular"]["acceptance_rate"] is None
    assert methods["pipo"]["tpot_ms"] > 0 and 0.1 < methods["pipo"]["acceptance_rate"] < 0.9
    assert summary["provenance"]["base"] == tiny_llama and summary["provenance"]["threshold"] == 0.4
    assert (options.output / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    report = (options.output / "report.md").read_text()
    assert tiny_llama in report and "τ = 0.4" in report and "\n- seed: 0\n" in report


def test_counts_agree_and_seeds_are_shared(options):
    evaluate(options)
    found = lines(options.output)
    for line in found:
        drafts = line["accepted"] if line["method"] == "pipo" else 0
        assert line["completion_tokens"] == line["steps"] + drafts <= 12 and line["accepted"] <= line["drafted"]
    seeds = {method: {line["seed"] for line in found if line["method"] == method} for method in ("regular", "pipo")}
    assert seeds["regular"] == seeds["pipo"] and len(seeds["pipo"]) == 9


def test_answers_do_not_depend_on_batches(options, tmp_path):
    evaluate(replace(options, output=tmp_path / "a", batch_size=1))
    evaluate(replace(options, output=tmp_path / "b", batch_size=5, timing=False))
    assert answers(tmp_path / "a") == answers(tmp_path / "b")
    assert len({line["text"] for line in answers(tmp_path / "a")}) > 9


@pytest.mark.parametrize("kept", [1, 7])
def test_a_killed_run_goes_on(options, tmp_path, kept):
    whole = evaluate(replace(options, output=tmp_path / "whole"))
    evaluate(options)
    path = options.output / "samples.jsonl"
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[:kept]) + b"".join(written[kept : kept + 1])[:40])
    summary = evaluate(options)
    assert path.read_bytes().startswith(b"".join(written[:kept]))
    assert answers(options.output) == answers(tmp_path / "whole") and len(lines(options.output)) == 18
    accuracy = [run["tasks"]["sums"]["pipo"]["avg_at_k_ci95"] for run in (summary, whole)]
    assert accuracy[0] == accuracy[1]


def test_a_finished_run_loads_no_model(options, monkeypatch):
    evaluate(options)
    monkeypatch.setattr(LocalEngine, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    evaluate(options)


def test_greedy_counts_one_answer_several_times(options):
    evaluate(replace(options, sampling=GREEDY))
    found = lines(options.output)
    texts = {(line["question_id"], line["method"]): set() for line in found}
    for line in found:
        texts[line["question_id"], line["method"]].add(line["text"])
    assert len(found) == 18 and all(len(text) == 1 for text in texts.values())


@pytest.mark.parametrize(("threshold", "least"), [(0.0, 10), (2.0, 5)])
def test_slots_are_steps(options, threshold, least):
    evaluate(replace(options, budget=Budget("slots", 5), threshold=threshold))
    for line in lines(options.output):
        assert line["steps"] <= 5 and (line["finish_reason"] == "stop" or line["steps"] == 5)
        if line["method"] == "pipo" and line["finish_reason"] == "length":
            assert line["completion_tokens"] >= least
        assert line["completion_tokens"] == line["steps"] + line["accepted"]


def test_a_cut_answer_begins_like_the_whole(options, tmp_path):
    evaluate(replace(options, output=tmp_path / "a", budget=Budget("slots", 4), timing=False))
    evaluate(replace(options, output=tmp_path / "b", budget=Budget("slots", 8), timing=False))
    pairs = list(zip(answers(tmp_path / "a"), answers(tmp_path / "b"), strict=True))
    assert all(b["text"].startswith(a["text"].rstrip("\ufffd")) for a, b in pairs)
    assert any(a["finish_reason"] == "length" and a["text"] != b["text"] for a, b in pairs)


def test_a_failed_sample_is_wrong_and_named(options, tmp_path, task):
    with open(task, "a") as file:
        file.write(json.dumps({"id": "long", "question": "how many " * 700, "answer": 7}) + "\n")
    summary = evaluate(replace(options, timing=False))
    failed = [line for line in lines(options.output) if "error" in line]
    assert {line["question_id"] for line in failed} == {"long"} and len(lines(options.output)) == 4 * 2 * 3
    assert all(not line["correct"] and line["finish_reason"] == "error" for line in failed)
    figures = summary["tasks"]["sums"]["regular"]
    assert (figures["n_questions"], figures["failed"]) == (4, 3)
    assert "sums long regular sample 0" in (options.output / "report.md").read_text()


def test_an_uncompressed_model_is_evaluated_itself(options, tiny_llama):
    summary = evaluate(replace(options, model=tiny_llama, base=None, threshold=None))
    assert list(summary["tasks"]["sums"]) == ["regular"]
    assert "which is uncompressed" in (options.output / "report.md").read_text()


def test_a_folder_of_another_run_is_refused(options):
    options = replace(options, samples=1)
    evaluate(options)
    before = {path.name: path.read_bytes() for path in options.output.iterdir()}
    others = {
        "seed": 1,
        "threshold": 0.5,
        "samples": 2,
        "budget": Budget("slots", 12),
        "sampling": Sampling(top_k=5),
        "methods": ("pipo",),
    }
    for field, value in others.items():
        with pytest.raises(UsageError, match=f"--output: .* with {field} "):
            evaluate(replace(options, **{field: value}))
    with pytest.raises(UsageError, match="--output: .* with questions "):
        evaluate(replace(options, limit=2))
    assert before == {path.name: path.read_bytes() for path in options.output.iterdir()}


def test_a_folder_is_written_by_one_run_at_a_time(options):
    evaluate(options)
    settings = json.loads((options.output / "run.json").read_text())
    with SampleLog(options.output, settings), pytest.raises(UsageError, match="another run is writing"):
        evaluate(options)


def test_a_changed_model_is_another_run(options, unsure):
    evaluate(options)
    os.utime(Path(unsure) / "model.safetensors")
    with pytest.raises(UsageError, match="--output: .* with files "):
        evaluate(options)


def test_a_folder_with_other_files_is_refused(options):
    options.output.mkdir()
    (options.output / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        evaluate(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("mtp",)}, "has no trained MTP head; train one with `pipo sft` and `objective: mtp`"),
        ({"methods": ("regular", "speculative")}, "--methods speculative: "),
        ({"pass_k": 4}, "--pass-k: 4 is more than the samples of a question (3)"),
        ({"pass_k": 0}, "--pass-k: 0 is below 1"),
        ({"methods": ("regulr",)}, "did you mean regular"),
        ({"engine": "sglang"}, "--engine: unknown name 'sglang'"),
        ({"tasks": ("gsm_symbolik",)}, "did you mean gsm_symbolic"),
        ({"tasks": ()}, "--task: names no task"),
        ({"samples": 0}, "--samples: 0 is below 1"),
        ({"limit": 0}, "--limit: 0 is below 1"),
        ({"batch_size": 0}, "--batch-size: 0 is below 1"),
        ({"threshold": -1.0}, "confidence_threshold"),
        ({"device": "abacus"}, "--device"),
        ({"dtype": "float8"}, "--dtype"),
        ({"held_out": True}, "--held-out"),
        ({"base": "/nowhere"}, "--base: cannot load /nowhere"),
        ({"model": "/nowhere"}, "MODEL: cannot load /nowhere"),
    ],
)
def test_bad_options_are_named(options, changes, message):
    with pytest.raises(UsageError) as caught:
        evaluate(replace(options, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not options.output.exists()


def test_a_base_that_is_a_pipo_model_is_refused(options, tiny_pipo):
    with pytest.raises(UsageError, match="is a PIPO model"):
        evaluate(replace(options, base=tiny_pipo))


def test_the_base_is_what_the_model_was_trained_from(options, tiny_pipo, tiny_llama):
    summary = evaluate(replace(options, model=tiny_pipo, base=None, methods=("regular",), samples=1, limit=1))
    assert summary["provenance"]["base"] == tiny_llama


def test_a_model_that_names_no_base_needs_one(options):
    with pytest.raises(UsageError, match="--base: .* does not say what it was trained from"):
        evaluate(replace(options, base=None))


def test_ids_that_are_twice_there_are_refused(options, task):
    with open(task, "a") as file:
        file.write(json.dumps({"id": "1", "question": "?", "answer": 7}) + "\n")
    with pytest.raises(UsageError, match="question id '1' is twice in sums"):
        evaluate(options)


@pytest.mark.parametrize("text", ["", "12", "tokens", "tokens:0", "slots:-1", "steps:3", "tokens:1.5", "tokens:3 "])
def test_budgets_that_are_none(text):
    with pytest.raises(UsageError, match="--budget"):
        Budget.parse(text)


def test_budgets():
    assert Budget.parse("tokens:512").max_new_tokens(2) == 512
    assert Budget.parse("slots:512").max_new_tokens(2) == 1024 and str(Budget.parse("slots:3")) == "slots:3"


METHODS = ("regular", "mtp", "speculative", "pipo")


@pytest.fixture
def four(options, tiny_drafted):
    return replace(options, base=tiny_drafted, methods=METHODS, timing=False)


def by_method(folder):
    found = {method: [] for method in METHODS}
    for line in answers(folder):
        found[line["method"]].append(line)
    return found


def test_all_four_methods_in_one_run(four, tiny_drafted):
    summary = evaluate(replace(four, timing=True, samples=1))
    timed = [(line["question_id"], line["method"]) for line in lines(four.output)]
    assert timed == [(str(i), method) for i in range(3) for method in METHODS]  # interleaved
    assert all(line["ttft_ms"] > 0 for line in lines(four.output))
    figures = summary["tasks"]["sums"]
    assert tuple(figures) == METHODS and all(set(FIGURES) <= figures[method].keys() for method in METHODS)
    assert figures["mtp"]["acceptance_rate"] == 1.0 and figures["mtp"]["tokens_per_step"] > 1.7
    assert figures["regular"]["acceptance_rate"] is None and figures["regular"]["tokens_per_step"] == 1
    assert "difference_to_regular" not in figures["regular"]
    for method in METHODS[1:]:
        low, high = figures[method]["difference_to_regular_ci95"]
        difference = figures[method]["avg_at_k"] - figures["regular"]["avg_at_k"]
        assert figures[method]["difference_to_regular"] == pytest.approx(difference) and low <= difference <= high
    assert 1 < figures["speculative"]["tokens_per_step"] < figures["mtp"]["tokens_per_step"]
    assert summary["provenance"]["base"] == tiny_drafted
    report = (four.output / "report.md").read_text()
    assert "`mtp` and `speculative` decode it with its MTP head" in report and "| speculative |" in report


def test_greedy_speculative_answers_are_the_regular_ones(four):
    evaluate(replace(four, sampling=Sampling(temperature=0, presence_penalty=0.5)))
    found = by_method(four.output)
    for regular, ours in zip(found["regular"], found["speculative"], strict=True):
        same = ("text", "completion_tokens", "finish_reason", "correct")
        assert all(regular[name] == ours[name] for name in same) and ours["steps"] <= regular["steps"]
    assert any(a["text"] != b["text"] for a, b in zip(found["regular"], found["mtp"], strict=True))


def test_counts_of_drafted_methods(four):
    evaluate(four)
    for method, found in by_method(four.output).items():
        for line in found:
            assert line["accepted"] <= line["drafted"] <= line["steps"] and line["completion_tokens"] <= 12
            extra = line["completion_tokens"] - line["steps"]
            if method == "speculative":  # an accepted draft that ends the answer is a step of its own
                assert line["accepted"] - 1 <= extra <= line["accepted"] and line["drafted"] == line["steps"] - 1
            else:
                assert extra == line["accepted"] and (method != "mtp" or line["accepted"] == line["drafted"])


def test_slots_are_steps_of_every_method(four):
    evaluate(replace(four, budget=Budget("slots", 5)))
    for method, found in by_method(four.output).items():
        assert all(line["steps"] <= 5 for line in found)
        full = [line for line in found if line["finish_reason"] == "length"]
        assert full and all(line["steps"] == 5 for line in full)
        most = {"regular": 5, "mtp": 10, "speculative": 9, "pipo": 10}[method]
        assert all(5 <= line["completion_tokens"] <= most for line in full)


def test_batches_change_no_method(four, tmp_path):
    evaluate(replace(four, output=tmp_path / "a", batch_size=1))
    evaluate(replace(four, output=tmp_path / "b", batch_size=5))
    assert answers(tmp_path / "a") == answers(tmp_path / "b")


def test_an_uncompressed_model_decodes_with_its_own_head(four, tiny_drafted):
    options = replace(four, model=tiny_drafted, base=None, threshold=None, methods=METHODS[:3], samples=1)
    assert tuple(evaluate(options)["tasks"]["sums"]) == METHODS[:3]
    with pytest.raises(UsageError, match="is no PIPO model; use regular, mtp or speculative"):
        evaluate(replace(options, methods=METHODS))
    with pytest.raises(UsageError, match="--threshold: .* is no PIPO model; leave it out"):
        evaluate(replace(options, threshold=0.5))


def test_methods_of_one_base_share_its_weights(four):
    found = contestants(four)
    assert found[0].engine is found[1].engine is found[2].engine is not found[3].engine


def test_a_new_head_is_another_run_of_the_methods_that_use_it(four, tiny_drafted):
    regular, drafts = replace(four, methods=("regular",)), replace(four, methods=("mtp",))
    before = [contestants(options)[0].fingerprint() for options in (regular, drafts)]
    os.utime(Path(tiny_drafted) / "mtp.safetensors")
    after = [contestants(options)[0].fingerprint() for options in (regular, drafts)]
    assert before[0] == after[0] and before[1] != after[1]


def test_a_hybrid_base_is_refused_before_anything_is_written(four, tmp_path):
    folder = tmp_path / "hybrid"
    model = tiny.drafted("qwen3_5")
    model.base.save_pretrained(folder)
    save_mtp(model.mtp, folder)
    with pytest.raises(UsageError, match="speculative: a rejected draft cannot be taken out of"):
        evaluate(replace(four, base=str(folder)))
    assert not four.output.exists()


def test_k_of_pass_at_k_can_change_on_a_finished_run(options):
    whole = evaluate(options)["tasks"]["sums"]["pipo"]
    one = evaluate(replace(options, pass_k=1))["tasks"]["sums"]["pipo"]
    assert (whole["pass_k"], one["pass_k"]) == (3, 1)
    assert one["pass_at_k"] == pytest.approx(one["avg_at_k"]) and one["pass_at_k_ci95"] == pytest.approx(
        one["avg_at_k_ci95"]
    )
    assert "pass@k at k = 1" in (options.output / "report.md").read_text()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda line: "{", "is not JSON"),
        (lambda line: "[1]", "has no task, "),
        (lambda line: json.dumps({k: v for k, v in line.items() if k not in ("gold", "steps")}), "has no gold, steps;"),
    ],
)
def test_damaged_lines_are_named(options, damage, problem):
    evaluate(options)
    path = options.output / "samples.jsonl"
    written = path.read_text().splitlines()
    path.write_text("\n".join([written[0], damage(json.loads(written[1])), *written[2:]]) + "\n")
    with pytest.raises(UsageError, match=problem) as caught:
        evaluate(options)
    assert str(caught.value).startswith(f"{path}:2: ")
