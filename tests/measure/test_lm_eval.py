"""The model `pipo` of lm-evaluation-harness."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from pipo.decoding.options import GREEDY
from pipo.errors import UsageError
from pipo.measure.lm_eval import PipoLM

GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["the"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
task: tiny_choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [" user", " the answer"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def models(unsure):
    """In pairs, and every token alone."""
    return {threshold: PipoLM(unsure, threshold=threshold, device="cpu", batch_size=3) for threshold in (0.0, 2.0)}


def ask(*arguments):
    return SimpleNamespace(args=arguments)


def tokens(model, number, prompt="what is the answer"):
    """Greedy tokens of the decoder."""
    ids = model.tok_encode(prompt)
    (found,) = model.engine.complete(
        [ids], sampling=GREEDY, max_new_tokens=number, threshold=model.threshold, ignore_eos=True
    )
    return ids, found.token_ids


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_what_the_decoder_writes_is_likeliest(models, threshold, number):
    model = models[threshold]
    context, written = tokens(model, number)
    assert len(written) == number
    others = [[*written[:i], (written[i] + 1) % 300 + 3, *written[i + 1 :]] for i in range(number)]
    (score, greedy), *rest = model._loglikelihood_tokens([(("", ""), context, ids) for ids in [written, *others]])
    assert greedy and score < 0 and not any(flag for _, flag in rest)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("given", [[], [7]])
def test_probabilities_of_a_token_sum_to_one(models, threshold, given):
    """Of the first (the backbone's), and of the second given the first (the MTP head's, in pairs); PAD has none."""
    model = models[threshold]
    context = model.tok_encode("how many")
    ((before, _),) = model._loglikelihood_tokens([(("", ""), context, given)]) if given else [(0.0, True)]
    found = model._loglikelihood_tokens([(("", ""), context, [*given, token]) for token in range(tiny.VOCAB)])
    probabilities = [math.exp(score - before) for score, _ in found]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert probabilities[model.model.config.pad_token_id] == 0


def test_odd_places_are_the_mtp_heads(models):
    """In pairs the first token has the backbone's score, as alone, and the second has not."""
    paired, alone = models.values()
    context = paired.tok_encode("what is the answer")
    one, two = [(("", ""), context, ids) for ids in ([40], [40, 41])]
    assert paired._loglikelihood_tokens([one])[0] == pytest.approx(alone._loglikelihood_tokens([one])[0], abs=1e-4)
    assert abs(paired._loglikelihood_tokens([two])[0][0] - alone._loglikelihood_tokens([two])[0][0]) > 1e-3


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_a_batch_equals_its_rows(models, threshold):
    model = models[threshold]
    requests = [ask("what is " * n, " the answer" * (5 - n)) for n in range(5)]
    together = model.loglikelihood(requests)
    singles = [model.loglikelihood([request])[0] for request in requests]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in singles], abs=1e-4)
    contexts = [ask("what is " * n, {"max_gen_toks": 5}) for n in range(1, 6)]
    assert model.generate_until(contexts) == [model.generate_until([one])[0] for one in contexts]


def test_whole_texts_in_windows(models):
    model = models[0.0]
    text = "the answer is what "
    ids = model.tok_encode(text)
    ((whole, _),) = model._loglikelihood_tokens([(("", ""), [model.eot_token_id], ids)])
    assert model.loglikelihood_rolling([ask(text)]) == pytest.approx([whole])
    long = model.loglikelihood_rolling([ask(text * 200)])[0]
    assert len(model.tok_encode(text * 200)) > model.max_length and -math.inf < long < 10 * whole


def test_answers_end_before_their_stop_strings(models):
    model = models[0.0]
    (free,) = model.generate_until([ask("what is", {"max_gen_toks": 8, "until": []})])
    stop = free[3]
    (cut,) = model.generate_until([ask("what is", {"max_gen_toks": 8, "until": [stop]})])
    assert free.startswith(cut) and stop not in cut and len(cut) < len(free)


def test_drawn_answers_depend_on_the_seed(unsure):
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 50, "max_gen_toks": 8}
    first, again, other = (PipoLM(unsure, device="cpu", seed=seed) for seed in (1, 1, 2))
    texts = [model.generate_until([ask("what", drawn), ask("what", drawn)]) for model in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]


def test_options_that_do_not_work_are_refused(models, unsure, tiny_llama):
    with pytest.raises(UsageError, match="gen_kwargs num_beams"):
        models[0.0].generate_until([ask("what", {"num_beams": 4})])
    with pytest.raises(UsageError, match="--model_args parallelize"):
        PipoLM(unsure, parallelize=True)
    with pytest.raises(UsageError, match="no PIPO model; use --model hf"):
        PipoLM(tiny_llama, device="cpu")
    with pytest.raises(UsageError, match="--batch_size: 'auto'"):
        PipoLM(unsure, batch_size="auto")


def test_the_harness_command_line(unsure, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"what is {i}", "answer": str(i)} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in (("generate", GENERATE), ("choose", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("DATA", str(data)))
    words = ["run", "--model", "pipo", "--model_args", f"pretrained={unsure},threshold=0.5", "--device", "cpu"]
    words += ["--tasks", "tiny_generate,tiny_choose", "--include_path", str(tmp_path), "--apply_chat_template"]
    words += ["--output_path", str(tmp_path / "out"), "--batch_size", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "pipo.measure.lm_eval", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert results["tiny_generate"]["exact_match,none"] in (0, 1 / 3, 2 / 3, 1)
    assert 0 <= results["tiny_choose"]["acc,none"] <= 1
