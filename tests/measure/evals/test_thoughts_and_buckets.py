"""Thoughts, smaller budgets out of one run, and sweeps of thresholds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny

from pipo.decoding.engine import LocalEngine
from pipo.errors import UsageError
from pipo.measure.evals import buckets
from pipo.measure.evals.budget import Budget
from pipo.measure.evals.options import EvalOptions
from pipo.measure.evals.run import evaluate
from pipo.tasks.thoughts import conclusion, opens_thought

SWITCH = "{% if add_generation_prompt %}{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("text", "opened", "concluded"),
    [
        ("plain", False, "plain"),
        ("thought</think>\nanswer", True, "\nanswer"),
        ("<think>thought</think>answer", False, "answer"),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("not yet done", True, ""),
        ("<think>not yet done", False, ""),
        ("<think>a</think>b<think>c", False, ""),
        ("stray</think>answer", False, "answer"),
    ],
)
def test_what_counts_comes_after_the_thoughts(text, opened, concluded):
    assert conclusion(text, opened) == concluded


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a PIPO model with confidences on both sides of the thresholds; their template can think."""
    base, pipo = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("pipo")
    tiny.base("llama").save_pretrained(base)
    tiny.pipo("llama").save_pretrained(pipo)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template += SWITCH
    for folder in (base, pipo):
        tokenizer.save_pretrained(folder)
    return str(base), str(pipo)


@pytest.fixture
def options(folders, tmp_path, monkeypatch):
    base, pipo = folders
    task = tmp_path / "sums.jsonl"
    task.write_text("".join(json.dumps({"question": f"what is {i}", "answer": i}) + "\n" for i in range(4)))
    # random models are never right, so something that changes with every token is
    monkeypatch.setattr("pipo.tasks.chat_jsonl.score", lambda text, _: (text, len(text) % 2 == 1))
    same = {"base": base, "samples": 2, "budget": Budget("tokens", 12), "device": "cpu", "timing": False}
    return EvalOptions(pipo, (str(task),), tmp_path / "out", threshold=0.4, thinking=False, **same)


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["tokens", "slots"])
def test_buckets_are_what_runs_of_that_budget_measure(options, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(buckets, "SIZES", (3, 6, 12, 24))
    whole = evaluate(replace(options, budget=Budget(kind, 12)))["tasks"]["sums"]
    assert list(whole["pipo"]["buckets"]) == ["3", "6", "12"]
    seen = set()
    for size in (3, 6, 12):
        alone = evaluate(replace(options, output=tmp_path / f"{kind}{size}", budget=Budget(kind, size)))["tasks"][
            "sums"
        ]
        for method in ("regular", "pipo"):
            figures = whole[method]["buckets"][str(size)]
            assert figures == {key: alone[method][key] for key in figures}
            seen.add(figures["avg_at_k"])
    assert len(seen) > 1
    report = (options.output / "report.md").read_text()
    assert "| avg@k / pass@k within | 3 | 6 | 12 |" in report


def test_unfinished_thoughts_are_wrong_at_smaller_budgets(options, monkeypatch):
    monkeypatch.setattr(buckets, "SIZES", (4,))
    evaluate(replace(options, thinking=True))
    found = lines(options.output)
    assert all(not line["correct"] and line["answer"] == "" for line in found)  # no tiny model closes its thought
    assert not any(any(line.get("correct_at", {}).values()) for line in found)


def test_a_sweep_has_a_row_for_every_threshold(options, tmp_path, monkeypatch):
    loaded = []
    load = LocalEngine.load
    monkeypatch.setattr(LocalEngine, "load", lambda path, **rest: loaded.append(path) or load(path, **rest))
    summary = evaluate(replace(options, threshold=None, thresholds=(0.0, 0.5, 2.0)))
    assert len(loaded) == 2
    rows = summary["tasks"]["sums"]
    assert list(rows) == ["regular", "pipo@0", "pipo@0.5", "pipo@2"]
    assert rows["pipo@0"]["acceptance_rate"] == 1 and rows["pipo@2"]["acceptance_rate"] is None
    for threshold in (0.0, 0.5, 2.0):
        alone = replace(options, output=tmp_path / f"t{threshold:g}", threshold=threshold, methods=("pipo",))
        evaluate(alone)
        mine = [line["text"] for line in lines(options.output) if line["method"] == f"pipo@{threshold:g}"]
        assert mine == [line["text"] for line in lines(alone.output)]
    report = (options.output / "report.md").read_text()
    assert "| pipo@0.5 |" in report and "| less regular |" in report
    assert (options.output / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert summary["provenance"]["thresholds"] == [0.0, 0.5, 2.0] and summary["provenance"]["base"] == options.base


def test_thinking_is_the_templates_switch(folders):
    engine = LocalEngine.load(folders[1])
    on, off = engine.encode("why", thinking=True), engine.encode("why", thinking=False)
    assert engine.encode("why") == off
    assert engine.tokenizer.decode(on).endswith("<think>\n") and "</think>" in engine.tokenizer.decode(off)
    assert opens_thought(engine.tokenizer, on) and not opens_thought(engine.tokenizer, off)


def test_a_template_without_the_switch_is_refused(options, tiny_llama):
    plain = replace(options, model=tiny_llama, base=None, threshold=None, thinking=True)
    with pytest.raises(UsageError, match="--thinking: .* no enable_thinking"):
        evaluate(plain)
    assert lines(options.output) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": (0.5,)}, "--thresholds: goes without --threshold"),
        ({"thresholds": (0.5, 0.5), "threshold": None}, "--thresholds: 0.5, 0.5 names one twice"),
        ({"thresholds": (-1.0,), "threshold": None}, "confidence_threshold"),
    ],
)
def test_bad_sweeps_are_named(options, changes, message):
    with pytest.raises(UsageError, match=message):
        evaluate(replace(options, **changes))
    assert not options.output.exists()
