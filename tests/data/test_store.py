"""Tokenized files on the disk: the same however they were made, made once, and named by all that decides them."""

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import tiny

from pipo.data import store as storing
from pipo.data.datasets import ChatDataset, PairDataset, PromptDataset
from pipo.data.examples import Examples
from pipo.data.stats import collect
from pipo.data.store import key, open_store
from pipo.errors import UsageError
from pipo.pairing import IGNORE, pad_to_even
from pipo.training.recipe import SftRecipe
from pipo.training.sft import chats

PAD = 2
CALL = {"name": "f", "arguments": "no object"}
TURNS = [
    {"role": "user", "content": "what"},
    {"role": "assistant", "content": "one so"},
    {"role": "user", "content": "how many"},
    {"role": "assistant", "content": "two"},
]
DEEP = "[" * 200_000
BAD = {
    "{": "no JSON",
    DEEP: "nested too deeply",
    '{"messages": []}': "messages",
    json.dumps({"messages": [{"role": "user", "content": "half \ud83d"}, TURNS[1]]}): "surrogate",
    json.dumps({"messages": [TURNS[0], {"role": "assistant", "tool_calls": [CALL]}]}): "no JSON object",
    json.dumps({"messages": [{"role": "user", "content": "so <|pad|>"}, TURNS[1]]}): "special token <|pad|>",
    json.dumps({"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]}): "weight",
    json.dumps({"messages": [{"role": "user", "content": "raise"}, TURNS[1]]}): "refuses it (no such word)",
    json.dumps({"messages": [{"role": "user", "content": "what"}, {**TURNS[1], "name": 7}]}): "TypeError",
}
"""A line -> what is wrong with it, of `strange`'s template."""


def strange():
    """A tokenizer whose template raises what templates raise."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'raise' %}{{ raise_exception('no such word') }}{% endif %}"
        "{{ '' + m.name if m.name is defined }}{% endfor %}"
    ) + tiny.TEMPLATE
    return tokenizer


@pytest.fixture
def mixed(tmp_path):
    """Good lines of different lengths, a BOM before the first, and all the bad ones among them."""
    rng = random.Random(0)
    lines = [
        json.dumps({"messages": [{**TURNS[0], "content": "what " * rng.randint(1, 40)}, *TURNS[1:]]}) for _ in range(40)
    ]
    for i, line in enumerate(BAD):
        lines.insert(4 * i + 2, line)
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(storing.BOM + "\n\n".join(lines).encode() + b"\n")
    return str(file)


def contents(store):
    return [array.tolist() for array in (store.ids, store.rows, store.answers)], store.problems, store.counts


def test_many_processes_make_what_one_makes(mixed, monkeypatch):
    examples = Examples(strange())
    one = open_store([mixed], examples, workers=1)
    monkeypatch.setattr(storing, "CHUNK", 700)
    monkeypatch.setattr(storing, "FORMAT", b"another")
    many = open_store([mixed], examples, workers=2)
    assert one.folder != many.folder and contents(one) == contents(many)
    assert len(storing._chunks(0, mixed)) > 10
    assert len(one.rows) == 40 and one.counts == {"chats": 40, "prompts": 0, "turns": 160, "answers": 80}


def test_bad_lines_are_named_alike_everywhere_and_every_time(mixed, monkeypatch):
    lines = Path(mixed).read_bytes().split(b"\n")
    first = ChatDataset([mixed], strange(), max_length=500).problems
    assert len(first) == len(BAD)
    for problem, (line, reason) in zip(first, BAD.items(), strict=True):
        assert lines[problem.line - 1].decode() == line and reason in problem.reason and problem.file == mixed
    monkeypatch.setattr(storing, "tokenize", None)  # nothing is tokenized again
    assert ChatDataset([mixed], strange(), max_length=500).problems == first
    assert collect([mixed], strange()).problems == first


def test_prompts_name_them_too(mixed):
    data = PromptDataset([mixed], strange(), max_length=500)
    named = [problem.reason for problem in data.problems]
    assert len(data) == 41  # of the answer that cannot be rendered the prompt can be
    assert [any(reason in line for line in named) for reason in BAD.values()] == [True] * 8 + [False]
    prompt = tiny.tokenizer().decode(data[0]["prompt"])
    assert prompt.endswith("how many<|im_end|>\n<|im_start|>assistant\n") and "one so" in prompt


def test_what_is_tokenized_is_known_by_all_that_decides_it(mixed):
    tokenizer, other = tiny.tokenizer(), tiny.tokenizer()
    other.add_tokens(["another"])
    switched = tiny.tokenizer()
    switched.chat_template += "{# enable_thinking #}"
    found = [key([mixed], Examples(tokenizer)), key([mixed, mixed], Examples(tokenizer))]
    found += [key([mixed], Examples(which)) for which in (other, switched)]
    found += [key([mixed], Examples(switched, template={"enable_thinking": on})) for on in (True, False)]
    found += [key([mixed], Examples(tokenizer, prefix="so")), key([mixed], Examples(tokenizer, prompts=True))]
    assert key([mixed], Examples(tiny.tokenizer())) == found[0]
    os.utime(mixed, (1, 1))
    found.append(key([mixed], Examples(tokenizer)))
    assert len(set(found)) == len(found)


def test_a_changed_file_is_read_anew(tmp_path):
    file = tmp_path / "chat.jsonl"
    for count in (1, 3):
        file.write_text((json.dumps({"messages": TURNS}) + "\n") * count)
        assert len(ChatDataset([str(file)], tiny.tokenizer(), max_length=200)) == 2 * count


def test_a_token_takes_few_bytes_and_none_of_memory(mixed):
    data = ChatDataset([mixed], tiny.tokenizer(), max_length=500)
    store = data.store
    on_disk = sum(path.stat().st_size for path in store.folder.glob("*.bin"))
    assert on_disk <= 8 * len(store.ids)
    assert all(isinstance(array.base, np.memmap) or isinstance(array, np.memmap) for array in (store.ids, store.rows))
    sent = pickle.dumps(store)
    assert len(sent) < 1000 and pickle.loads(sent).row(3) == store.row(3)


@pytest.mark.parametrize("asked", ["what", "what what", "what what what"])
def test_an_answer_follows_its_prompt_in_pairs_as_decoding_pairs_it(tmp_path, asked):
    """The whole prompt from position 0, earlier answers in it, filled up; then the answer, from a pair's first."""
    tokenizer, messages = tiny.tokenizer(), [{"role": "user", "content": asked}, *TURNS[1:]]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    data = ChatDataset([str(file)], tokenizer, max_length=500)
    rows = PairDataset(data, PAD, scheme="none", max_ratio=0, seed=0)
    assert len(rows) == 2
    for index, turn in enumerate((1, 3)):
        text = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        prompt = pad_to_even(tokenizer(text, add_special_tokens=False)["input_ids"], PAD)
        said = tokenizer(messages[turn]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        labels = [IGNORE] * len(prompt) + said + [IGNORE] * (len(said) % 2)
        assert rows[index] == {"input_ids": prompt + pad_to_even(said, PAD), "labels": labels}


def test_items_depend_on_seed_epoch_and_index_alone(mixed):
    def opened(epoch, seed=1):
        chats = ChatDataset([mixed], tiny.tokenizer(), max_length=500)
        rows = PairDataset(chats, PAD, scheme="shift", max_ratio=0.9, seed=seed, noise=True)
        rows.set_epoch(epoch)
        return rows

    resumed = opened(1)
    assert [resumed[i] for i in (7, 3)] == [opened(1)[i] for i in (7, 3)]
    assert opened(0)[7] != resumed[7] != opened(1, seed=2)[7]


def test_longer_answers_are_left_out_and_shorter_ones_of_the_same_line_stay(mixed):
    whole = ChatDataset([mixed], tiny.tokenizer(), max_length=500)
    limit = int(np.sort(whole.lengths)[20])
    for shared in (False, True):
        data = ChatDataset([mixed], tiny.tokenizer(), max_length=limit, shared=shared)
        assert max(data.lengths) <= limit and [len(data[i]["input_ids"]) for i in range(len(data))] == list(
            data.lengths
        )
        named = {problem.line for problem in data.problems if f"more than max_length {limit}" in problem.reason}
        trained = {int(whole.store.rows[row, 2]) for row in whole.store.answers[whole.store.answers[:, 2] <= limit, 0]}
        assert named & trained and named - trained
    targets = [sum(label != IGNORE for i in range(len(d)) for label in d[i]["labels"]) for d in (data, whole)]
    assert 0 < targets[0] < targets[1]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"data: cannot read .*none\.jsonl"):
        ChatDataset([str(tmp_path / "none.jsonl")], tiny.tokenizer(), max_length=9)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="data: nothing to train on"):
        ChatDataset([str(tmp_path / "empty.jsonl")], tiny.tokenizer(), max_length=9)


def test_a_recipe_passes_on_what_it_says(mixed, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template += "{% if add_generation_prompt and quick %}{{ 'so ' }}{% endif %}"
    file = tmp_path / "so.jsonl"
    file.write_text(json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": "so many"}]}))
    fields = {"model": "m", "output": "o", "data": {"train": [str(file)], "template": {"quick": True}, "workers": 1}}
    recipe = SftRecipe.model_validate(fields)
    (row,) = chats(recipe, recipe.data.train, tokenizer)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORE]) == "many<|im_end|>"
    recipe.data.template = {"slow": True}
    with pytest.raises(UsageError, match=r"data\.template\.slow"):
        chats(recipe, recipe.data.train, tokenizer)
