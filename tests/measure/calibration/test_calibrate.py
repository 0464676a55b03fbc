"""Whole calibrations on tiny random models, and their parts against definitions written out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from pipo import PipoForCausalLM
from pipo.decoding.engine import LocalEngine
from pipo.decoding.options import Sampling
from pipo.errors import UsageError
from pipo.measure.calibration.choose import choose, mark_frontier, store, top
from pipo.measure.calibration.judge import Judge
from pipo.measure.calibration.options import CalibrateOptions
from pipo.measure.calibration.reliability import BINS, expected_calibration_error, judged, of_kept, reliability
from pipo.measure.calibration.run import calibrate, models
from pipo.measure.evals.run import evaluate
from pipo.pairing import pad_to_even

PAD = 2


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "sums.jsonl"
    questions = ["1 + 1", "What is the answer to 2 + 3, and how so?", "user " * 9 + "4 - 1?", "so?"]
    path.write_text("".join(json.dumps({"question": text, "answer": i}) + "\n" for i, text in enumerate(questions)))
    return str(path)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [[{"role": "user", "content": "what " * (i + 1)}] for i in range(4)]
    rows[1].append({"role": "assistant", "content": "never read"})
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def common(tiny_llama, unsure, task):
    few = {"thresholds": (0.0, 0.3, 0.9, 2.0), "samples": 2, "max_new_tokens": 12, "batch_size": 4, "device": "cpu"}
    return CalibrateOptions(unsure, Path("nowhere"), task, base=tiny_llama, **few)


@pytest.fixture
def options(common, tmp_path):
    return replace(common, output=tmp_path / "out")


@pytest.fixture(scope="module")
def finished(common, tmp_path_factory):
    """A whole run, to read or to copy."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    calibrate(replace(common, output=folder))
    return folder


def read(folder):
    return json.loads((folder / "calibration.json").read_text())


def lines(folder):
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda line: (line["method"], line["question_id"], line["sample_index"]))


def figures(summary):
    """What does not depend on the clock."""
    return {key: value for key, value in summary.items() if key != "provenance"}


def test_a_run_writes_what_is_promised(finished, tiny_llama):
    summary = read(finished)
    points = {(point["rejection"], point["threshold"]): point for point in summary["points"]}
    assert set(points) == {("confidence", t) for t in (0, 0.3, 0.9, 2)} | {("random", 0.3), ("random", 0.9)}
    assert points["confidence", 0.0]["acceptance_rate"] == 1 and points["confidence", 2.0]["acceptance_rate"] is None
    assert points["confidence", 2.0]["tokens_per_step"] == 1 and points["confidence", 2.0]["ece"] is None
    rates = [points["confidence", t]["acceptance_rate"] for t in (0.0, 0.3, 0.9)]
    assert rates == sorted(rates, reverse=True) and 0.1 < rates[2] < rates[1] < 0.9
    for point in summary["points"]:
        assert point["n_questions"] == 4 and point["samples"] == 2 and point["failed"] == 0
        low, high = point["tokens_per_step_ci95"]
        assert low <= point["tokens_per_step"] <= high
    assert summary["regular"]["tokens_per_step"] == 1 and summary["regular"]["acceptance_rate"] is None
    assert summary["base"] == tiny_llama and summary["stored"] is None and summary["choice"]["threshold"] == 0
    report = (finished / "report.md").read_text()
    assert "| random, τ = 0.9 |" in report and "pareto.png" in report and tiny_llama in report
    assert report.index("| uncompressed |") < report.index("| confidence, τ = 0")
    assert "Nothing was stored" in report and "## Reliability" in report
    for name in ("pareto.png", "reliability.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_counts_follow_from_the_samples(finished):
    """The summary's figures, computed anew from samples.jsonl."""
    summary, found = read(finished), lines(finished)
    assert len(found) == 7 * 4 * 2
    for line in found:
        assert len(line["drafts"]) == line["drafted"] and sum(d[3] for d in line["drafts"]) == line["accepted"]
        assert all(0 <= c <= 1 and 0 <= a <= 1 and top in (True, False) for c, a, top, _ in line["drafts"])
        if line["method"].startswith("confidence"):
            threshold = float(line["method"].partition("@")[2])
            assert all((c >= threshold) == kept for c, _, _, kept in line["drafts"])
    for point in summary["points"]:
        mine = [line for line in found if line["method"] == f"{point['rejection']}@{point['threshold']!r}"]
        drafts = [draft for line in mine for draft in line["drafts"]]
        kept = [draft[1] for draft in drafts if draft[3]]
        assert point["kept_agreement"] == (pytest.approx(sum(kept) / len(kept)) if kept else None)
        assert point["score"] == sum(line["correct"] for line in mine) / len(mine)
        steps = sum(line["steps"] for line in mine)
        assert point["tokens_per_step"] == sum(line["completion_tokens"] for line in mine) / steps
        assert point["difference_to_regular"] == pytest.approx(point["score"] - summary["regular"]["score"])
    mine = [line for line in found if line["method"] == "regular"]
    assert summary["regular"]["score"] == sum(line["correct"] for line in mine) / len(mine)
    swept = [draft for line in found if line["method"].startswith("confidence") for draft in line["drafts"]]
    assert summary["reliability"]["drafts"] == len(swept)
    assert summary["reliability"]["mean_confidence"] == pytest.approx(sum(draft[0] for draft in swept) / len(swept))


def test_random_points_have_the_rate_of_their_confidence_points(options):
    more = {"samples": 12, "max_new_tokens": 40, "batch_size": 16, "thresholds": (0.3, 0.9)}
    summary = calibrate(replace(options, **more))
    points = {(point["rejection"], point["threshold"]): point for point in summary["points"]}
    found = lines(options.output)
    for threshold in (0.3, 0.9):
        rate = points["confidence", threshold]["acceptance_rate"]
        random = points["random", threshold]
        assert random["forced_acceptance"] == rate and random["threshold"] == threshold
        mine = [line for line in found if line["method"] == f"random@{threshold}"]
        error = sqrt(rate * (1 - rate) / sum(line["drafted"] for line in mine))
        assert abs(random["acceptance_rate"] - rate) < 4 * error < 0.1
        patterns = {tuple(draft[3] for draft in line["drafts"]) for line in mine}
        assert len(patterns) > len(mine) / 2  # every sample has coins of its own
        kept = [draft[0] for line in mine for draft in line["drafts"] if draft[3]]
        assert min(kept) < threshold  # whatever the confidence


def test_samples_do_not_depend_on_batches(options, finished):
    calibrate(replace(options, batch_size=1))
    for a, b in zip(lines(options.output), lines(finished), strict=True):
        assert a["text"] == b["text"]
        np.testing.assert_allclose(
            np.array(a.pop("drafts"), float).ravel(), np.array(b.pop("drafts"), float).ravel(), atol=1e-3
        )
        assert a["teacher_logprob"] == pytest.approx(b["teacher_logprob"], rel=1e-4)


@pytest.mark.parametrize("kept", [3, 11, 45])
def test_a_killed_run_goes_on(options, finished, kept):
    """In the middle of the base's answers, of the thresholds, of the random points: the same samples and figures."""
    shutil.copytree(finished, options.output)
    path = options.output / "samples.jsonl"
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[:kept]) + written[kept][:40])
    for name in ("calibration.json", "report.md"):
        (options.output / name).unlink()
    again = calibrate(options)
    assert path.read_bytes().startswith(b"".join(written[:kept])) and len(lines(options.output)) == len(written) == 56
    assert [line["text"] for line in lines(options.output)] == [line["text"] for line in lines(finished)]
    for a, b in zip(again["points"], read(finished)["points"], strict=True):
        assert a["score_ci95"] == b["score_ci95"] and a["acceptance_rate"] == b["acceptance_rate"]
        assert a["ece"] == pytest.approx(b["ece"], abs=1e-3)


def test_a_finished_run_loads_no_model_and_takes_further_thresholds(options, finished, monkeypatch):
    shutil.copytree(finished, options.output)
    first = read(finished)
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "load", lambda *_, **__: pytest.fail("a model was loaded"))
        assert figures(calibrate(options)) == figures(first)
    before = lines(options.output)
    more = calibrate(replace(options, thresholds=(0.0, 0.3, 0.5, 0.9, 2.0)))
    assert [line for line in lines(options.output) if "@0.5" not in line["method"]] == before
    old = {(point["rejection"], point["threshold"]): point["score_ci95"] for point in first["points"]}
    new = {(point["rejection"], point["threshold"]): point["score_ci95"] for point in more["points"]}
    assert old.items() <= new.items() and len(new) == len(old) + 2


def test_without_control_nothing_is_random(options):
    summary = calibrate(replace(options, control=False))
    assert {point["rejection"] for point in summary["points"]} == {"confidence"}
    assert "confidence against random" not in (options.output / "report.md").read_text()


def test_the_base_answers_as_in_an_evaluation(options, finished, tmp_path):
    evaluate(replace(options.eval_options(), output=tmp_path / "eval", methods=("regular",)))
    ours = [line["text"] for line in lines(finished) if line["method"] == "regular"]
    assert ours == [line["text"] for line in lines(tmp_path / "eval")]


@torch.no_grad()
def test_the_judge_of_the_bases_own_answers(options):
    base, student = models(options)
    prompts = [base.engine.encode("1 + 1"), base.engine.encode("so what")]
    completions = base.complete(prompts, sampling=Sampling(), max_new_tokens=13, seeds=[3, 4])
    for prompt, done, line in zip(prompts, completions, Judge(student, base)(completions), strict=True):
        ids = torch.tensor([[*prompt, *done.token_ids]])
        logits = base.engine.model(ids).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])
        assert line["drafts"] == [] and line["teacher_logprob"] == pytest.approx(float(own.mean()), abs=1e-5)


@torch.no_grad()
def test_the_judge_says_what_the_definitions_say(options, tiny_llama):
    """Draft by draft, on singles: the base reads the clean text, the draft head reads the pairs."""
    base, student = models(options)
    engine = student.engine
    prompts = [engine.encode("1 + 1"), engine.encode("so what")]
    options_ = {"sampling": Sampling(), "max_new_tokens": 13, "seeds": [3, 4], "ignore_eos": True}
    completions = engine.complete(prompts, threshold=0.5, **options_)
    teacher = LocalEngine.load(tiny_llama).model
    for prompt, done, line in zip(prompts, completions, Judge(student, base)(completions), strict=True):
        pairs = [token for slot in done.slots for token in slot.pair(PAD)]
        ids = [*pad_to_even(prompt, PAD), *pairs]
        own = engine.model(torch.tensor([ids]), return_logits=True).mtp_logits[0, -len(done.slots) :].softmax(-1)
        text, logprobs, tops, drafts = list(prompt), [], [], []
        for i, slot in enumerate(done.slots):
            for place, token in enumerate([slot.token1] if slot.draft is None else [slot.token1, slot.draft]):
                p = teacher(torch.tensor([text])).logits[0, -1].softmax(-1)
                opinion = float(p[token].log()), bool(p.argmax() == token)
                if place:
                    drafts.append(
                        (slot.confidence, min(1.0, float(p[token] / own[i, token])), opinion[1], slot.accepted)
                    )
                if place == 0 or slot.accepted:
                    text.append(token)
                    logprobs.append(opinion[0])
                    tops.append(opinion[1])
        assert text == [*prompt, *done.token_ids]
        np.testing.assert_allclose(np.array(line["drafts"], float), np.array(drafts, float), atol=1e-4)
        assert line["teacher_logprob"] == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
        assert line["teacher_top1"] == pytest.approx(sum(tops) / len(tops))
    kept = [draft[3] for draft in line["drafts"]]
    assert True in kept and False in kept


def test_a_head_that_sees_the_draft_is_calibrated_too(options, tmp_path):
    folder = tmp_path / "draft"
    tiny.pipo("llama", confidence_inputs="draft").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    summary = calibrate(replace(options, model=str(folder), thresholds=(0.5,), control=False))
    assert summary["points"][0]["failed"] == 0 and 0 < summary["reliability"]["ece"] < 1


def test_prompts_without_answers_are_scored_by_the_base(options, chats, task):
    summary = calibrate(replace(options, task=None, data=chats))
    found = lines(options.output)
    assert summary["score"] == "teacher_logprob" and summary["task"] == "chats"
    assert {line["correct"] for line in found} == {None} and {line["question_id"] for line in found} == set("1234")
    for point in summary["points"]:
        mine = [line for line in found if line["method"] == f"{point['rejection']}@{point['threshold']!r}"]
        assert point["score"] == pytest.approx(sum(line["teacher_logprob"] for line in mine) / len(mine))
        assert point["score"] < 0 and point["pass_at_k"] is None
    mine = [line["teacher_logprob"] for line in found if line["method"] == "regular"]
    assert summary["regular"]["score"] == pytest.approx(sum(mine) / len(mine))
    assert "log-likelihood" in (options.output / "report.md").read_text()


def test_a_prompt_that_fails_is_named_and_left_out_of_every_point(options, chats, monkeypatch):
    encode = LocalEngine.encode

    def fail(self, prompt):
        if not isinstance(prompt, str) and prompt[0]["content"] == "what " * 3:
            raise ValueError("no such prompt")
        return encode(self, prompt)

    monkeypatch.setattr(LocalEngine, "encode", fail)
    summary = calibrate(replace(options, task=None, data=chats))
    assert {point["n_questions"] for point in summary["points"]} == {3}
    report = (options.output / "report.md").read_text()
    assert "chats 3 confidence@0.3 sample 0: ValueError: no such prompt" in report


def test_a_failed_sample_of_a_task_is_wrong(options, monkeypatch):
    monkeypatch.setattr(Judge, "__call__", lambda *_: pytest.fail("no"))
    with pytest.raises(pytest.fail.Exception):
        calibrate(options)
    monkeypatch.setattr(Judge, "__call__", lambda *_: 1 / 0)
    summary = calibrate(replace(options, thresholds=(0.5,)))
    (point,) = summary["points"]
    assert summary["regular"]["failed"] == 8
    assert point["failed"] == 8 and point["score"] == 0 and summary["reliability"] is None


# The parts


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_reliability_is_its_definition(rows):
    drafts = np.array(rows, dtype=float)
    found = reliability(drafts)
    for name, column in (("ece", 1), ("ece_top1", 2)):
        expected = 0.0
        for i in range(BINS):
            here = [row for row in drafts if min(int(row[0] * BINS), BINS - 1) == i]
            if here:
                expected += len(here) / len(drafts) * abs(sum(row[0] - row[column] for row in here) / len(here))
        assert found[name] == pytest.approx(expected, abs=1e-9)
    assert sum(part["drafts"] for part in found["bins"]) == len(drafts)
    assert all(part["low"] - 1e-9 <= part["confidence"] <= part["high"] + 1e-9 for part in found["bins"])
    kept = drafts[drafts[:, 3] == 1]
    assert of_kept(drafts)["kept_top1"] == (pytest.approx(kept[:, 2].mean()) if len(kept) else None)


def test_calibration_errors_that_are_known():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=200_000)
    assert expected_calibration_error(confidence, confidence) == 0
    assert expected_calibration_error(confidence, (rng.uniform(size=200_000) < confidence).astype(float)) < 0.01
    assert expected_calibration_error(np.full(9, 0.9), np.full(9, 0.4)) == pytest.approx(0.5)
    assert reliability(judged([{"error": "no drafts"}])) is None


def point(threshold, score, speed, difference=0.0):
    return {"threshold": threshold, "score": score, "tokens_per_step": speed, "difference_to_top": difference}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_frontier_holds_what_nothing_beats(places):
    points = [point(i, score, speed) for i, (score, speed) in enumerate(places)]
    mark_frontier(points)
    for mine, (score, speed) in zip(points, places, strict=True):
        beaten = any((a > score and b >= speed) or (a >= score and b > speed) for a, b in places)
        assert mine["pareto"] == (not beaten)


def test_the_rule_takes_the_fastest_within_the_margin():
    points = [point(0, 0.5, 2.0, -0.1), point(0.5, 0.592, 1.8, -0.008), point(0.9, 0.6, 1.5), point(2, 0.6, 1.0)]
    assert top(points)["threshold"] == 0.9
    assert choose(points, 0.01)["threshold"] == 0.5
    assert choose(points, 0.0)["threshold"] == 0.9
    assert choose(points, 0.2)["threshold"] == 0


def test_storing_keeps_everything_else(tiny_pipo, tmp_path):
    model = PipoForCausalLM.from_pretrained(tiny_pipo)
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(
        "# Card\n| licence | free |\n| confidence threshold | not set (0.95) |\n| x | y |\n"
    )
    before = json.loads((tmp_path / "generation_config.json").read_text())
    store(tmp_path, 0.85)
    after = json.loads((tmp_path / "generation_config.json").read_text())
    before.pop("_from_model_config", None)
    assert after == before | {"confidence_threshold": 0.85}
    assert GenerationConfig.from_pretrained(tmp_path).confidence_threshold == 0.85
    card = "# Card\n| licence | free |\n| confidence threshold | 0.85 |\n| x | y |\n"
    assert (tmp_path / "README.md").read_text() == card
    assert not list(tmp_path.glob(".*"))


def test_the_stored_threshold_is_what_decodes(options, unsure, tmp_path):
    folder = Path(shutil.copytree(unsure, tmp_path / "mine"))
    mine = replace(options, model=str(folder), control=False)
    summary = calibrate(replace(mine, store="best"))
    assert summary["stored"] == summary["choice"]["threshold"] == 0
    engine = LocalEngine.load(str(folder))
    (done,) = engine.complete([engine.encode("so")], sampling=Sampling(), max_new_tokens=8, seeds=[1])
    assert done.acceptance_rate == 1
    assert calibrate(replace(mine, store=0.9))["stored"] == 0.9  # the run goes on: what it measures is the same
    assert GenerationConfig.from_pretrained(folder).confidence_threshold == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sumss"}, "unknown task"),
        ({"task": None}, "give either --task or --data"),
        ({"thresholds": ()}, "--thresholds"),
        ({"thresholds": (0.5, -0.1)}, "--thresholds: -0.1"),
        ({"thresholds": (0.5, float("nan"))}, "--thresholds: nan"),
        ({"thresholds": (0.5, 0.5)}, "0.5 and 0.5 accept the same"),
        ({"thresholds": (1.5, 0.5, 3.0)}, "1.5 and 3 accept the same"),
        ({"margin": -1.0}, "--margin"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"samples": 0}, "--samples"),
        ({"store": 0.85}, "0.85 is not among the thresholds"),
        ({"model": "demo", "store": "best"}, "the shipped model"),
        ({"model": "someone/model", "store": 0.3}, "no local folder"),
        ({"base": None}, "--base: .* does not say what it was trained from; give --base BASE"),
        ({"base": "/no/such"}, "--base"),
        ({"task": "smollm2_mix", "held_out": True, "data": Path("x")}, "either"),
    ],
)
def test_bad_options_are_refused_by_name(options, changes, message, monkeypatch):
    monkeypatch.setattr(LocalEngine, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=message):
        calibrate(replace(options, **changes))
    assert not options.output.exists()


def test_models_that_cannot_be_calibrated_are_refused(options, tiny_llama, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"MODEL: .* is no PIPO model"):
        calibrate(replace(options, model=tiny_llama))
    other = tmp_path / "other"
    tiny.base("llama").save_pretrained(other)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UsageError, match="--base: its tokenizer is another"):
        calibrate(replace(options, base=str(other)))
    monkeypatch.setenv("PIPO_HOME", str(Path(options.model).parent))
    with pytest.raises(UsageError, match="cache of shipped models"):
        calibrate(replace(options, store="best"))


def test_another_runs_folder_is_refused(options, tmp_path):
    calibrate(replace(options, thresholds=(0.5,), control=False))
    before = (options.output / "samples.jsonl").read_bytes()
    with pytest.raises(UsageError, match="is of a run with seed 1"):
        calibrate(replace(options, seed=2))
    assert (options.output / "samples.jsonl").read_bytes() == before
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds other files"):
        calibrate(replace(options, output=tmp_path / "files"))


@pytest.mark.parametrize("row", ["{", '{"messages": []}', '{"messages": [{"role": "assistant", "content": "x"}]}'])
def test_bad_chats_are_named(options, tmp_path, row):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n" + row + "\n")
    with pytest.raises(UsageError, match=r"--data: .*bad\.jsonl:2"):
        calibrate(replace(options, task=None, data=file))
    assert not options.output.exists()
