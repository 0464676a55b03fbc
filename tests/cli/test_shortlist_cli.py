"""`pipo shortlist`: sizes compared, the best written, what does not pay refused."""

import json

import pytest
import tiny
import yaml

from pipo import PipoForCausalLM


@pytest.fixture
def chats(tmp_path):
    """A hundred conversations; every tenth is held out, and one of these has a word of its own."""
    words = ["The answer is what"] * 10 + ["The answer is Q"] + ["so and on"] * 89
    rows = [
        {"messages": [{"role": "user", "content": "user"}, {"role": "assistant", "content": text}]} for text in words
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    return path


@pytest.fixture
def measured(tiny_pipo, tmp_path):
    """A model with a measured threshold and a history."""
    model, folder = PipoForCausalLM.from_pretrained(tiny_pipo), tmp_path / "measured"
    model.generation_config._from_model_config = False  # as of a base that has a generation_config.json
    model.generation_config.confidence_threshold = 0.6
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "provenance.json").write_text(
        json.dumps({"command": "pipo sft", "base": "some-base", "data": ["a.jsonl"]})
    )
    return folder


def test_sizes_are_compared_and_the_best_is_written(pipo, measured, chats, tmp_path):
    out = tmp_path / "out"
    result = pipo("shortlist", measured, "--data", chats, "--size", "4,40,120", "--output", out, "--json")
    report = json.loads(result.stdout)
    assert [row["size"] for row in report["sizes"]] == [4, 40, 120]
    few, some, _ = report["sizes"]
    assert few["coverage"] < 0.9 and some["coverage"] == 1.0
    assert 0 < some["outside"] < few["outside"] < 1  # Q is outside both
    assert few["limit"] > some["limit"] > report["limit_without"]
    assert some["expected"] == pytest.approx(some["limit"] * (2 - some["outside"]) / 2)
    assert report["best"] == 40 and some["pays"]

    model = PipoForCausalLM.from_pretrained(out)
    tokenizer = tiny.tokenizer()
    assert model.config.draft_vocab_size == 40
    assert {tokenizer.eos_token_id, *tokenizer("The answer is what")["input_ids"]} <= set(model.draft_ids.tolist())
    assert model.generation_config.confidence_threshold == 0.6
    facts = json.loads((out / "provenance.json").read_text())
    assert (facts["base"], facts["data"]) == ("some-base", ["a.jsonl"])
    assert facts["shortlist"]["size"] == 40 and facts["shortlist"]["data"] == [str(chats)]
    assert facts["command"] != "pipo sft"
    assert json.loads(pipo("inspect", out, "--json").stdout)["draft_vocab_size"] == 40
    assert "draft vocab size: 40" in pipo("inspect", out).stdout
    assert pipo("check", out).exit_code == 0


def test_without_output_nothing_is_written(pipo, tiny_pipo, chats, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = pipo("shortlist", tiny_pipo, "--data", chats)
    assert result.exit_code == 0 and "yes" in result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_use(refused, tiny_pipo, tiny_llama, chats, tmp_path):
    data = ("--data", chats)
    refused("Missing option '--data'", "shortlist", tiny_pipo)
    refused("MODEL", "shortlist", tiny_llama, *data)
    refused("Invalid value for --size", "shortlist", tiny_pipo, *data, "--size", "0")
    refused("Invalid value for --size", "shortlist", tiny_pipo, *data, "--size", "many")
    assert "from 2 " in refused("--size", "shortlist", tiny_pipo, *data, "--size", "1")
    assert "to 319 " in refused("--size", "shortlist", tiny_pipo, *data, "--size", "320")
    refused("--output", "shortlist", tiny_pipo, *data, "--output", tiny_pipo)
    refused("data", "shortlist", tiny_pipo, "--data", tmp_path / "none.jsonl")
    one = tmp_path / "one.jsonl"
    one.write_text(chats.read_text().splitlines()[0])
    assert "fewer than two" in refused("--data", "shortlist", tiny_pipo, "--data", one)


def test_a_list_that_does_not_pay_is_not_written(refused, tiny_pipo, chats, tmp_path):
    out = tmp_path / "out"
    line = refused("--size", "shortlist", tiny_pipo, "--data", chats, "--size", "319", "--output", out)
    assert "without" in line and not out.exists()


def test_training_keeps_the_list(pipo, tiny_pipo, chats, tmp_path):
    assert pipo("shortlist", tiny_pipo, "--data", chats, "--output", tmp_path / "listed").exit_code == 0
    recipe = {
        "model": str(tmp_path / "listed"),
        "output": str(tmp_path / "run"),
        "data": {"train": [str(chats)]},
        "lora": {"rank": 2},
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert pipo("sft", "--config", tmp_path / "recipe.yaml").exit_code == 0
    before, after = (PipoForCausalLM.from_pretrained(tmp_path / name) for name in ("listed", "run"))
    assert before.draft_ids.tolist() == after.draft_ids.tolist()
