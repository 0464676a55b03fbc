"""`pipo generate`: answers, JSON, refusals."""

import json
import subprocess
import sys

import pytest

FEW = ("--max-new-tokens", 6, "--seed", 1)


def test_json(pipo, tiny_pipo):
    result = pipo("generate", tiny_pipo, "what is so", "--json", *FEW)
    answer = json.loads(result.stdout)
    assert list(answer) == ["text", "token_ids", "finish_reason", "usage", "pipo"]
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"]) <= 6
    stats = answer["pipo"]
    names = ["steps", "drafted", "accepted", "acceptance_rate", "tokens_per_step", "ttft_ms", "tpot_ms"]
    assert list(stats) == names
    assert stats["tokens_per_step"] == len(answer["token_ids"]) / stats["steps"]
    assert result.stderr == ""


def test_nothing_but_json_reaches_the_terminal(tiny_pipo):
    command = [sys.executable, "-m", "pipo_cli", "generate", tiny_pipo, "hi", "--json", "--max-new-tokens", "3"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] <= 3
    assert done.stderr == ""


def test_an_uncompressed_model_drafts_nothing(pipo, tiny_llama):
    stats = json.loads(pipo("generate", tiny_llama, "what", "--json", *FEW).stdout)["pipo"]
    assert stats["drafted"] == stats["accepted"] == 0
    assert stats["acceptance_rate"] is None


def test_a_file_is_answered_line_by_line_whatever_the_batch(pipo, tiny_pipo, tmp_path):
    file = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "user", "content": "how many"}]}
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "what"}, {"question": "and so on"}, chat)))

    def answers(size):
        lines = pipo("generate", tiny_pipo, "--file", file, "--json", "--batch-size", size, *FEW).stdout.splitlines()
        return [json.loads(line) for line in lines]

    alone, together = answers(1), answers(2)
    assert [a["token_ids"] for a in alone] == [a["token_ids"] for a in together]
    assert len(alone) == 3
    assert all(a["pipo"]["ttft_ms"] > 0 for a in alone)
    assert together[0]["pipo"]["ttft_ms"] is None


def test_prompts_from_stdin(pipo, tiny_pipo):
    assert (
        len(pipo("generate", tiny_pipo, "--file", "-", "--json", *FEW, stdin="one\n\ntwo\n").stdout.splitlines()) == 2
    )
    assert pipo("generate", tiny_pipo, "-", "--json", *FEW, stdin="what\nis").exit_code == 0


def test_temperature_zero_is_greedy(pipo, tiny_pipo):
    first, second = (
        pipo("generate", tiny_pipo, "what", "--temperature", 0, "--seed", seed, "--max-new-tokens", 8, "--json")
        for seed in (1, 2)
    )
    assert json.loads(first.stdout)["token_ids"] == json.loads(second.stdout)["token_ids"]


def test_drafts_are_counted(pipo, tiny_pipo):
    result = pipo("generate", tiny_pipo, "what", "--show-drafts", "--threshold", 0, *FEW)
    assert " accepted, 0 rejected" in result.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("--temperature", ["--temperature", "nan"]),
        ("--temperature", ["--temperature=-1"]),
        ("--top-p", ["--top-p", "0"]),
        ("--top-p", ["--top-p", "nan"]),
        ("--top-k", ["--top-k=-1"]),
        ("--presence-penalty", ["--presence-penalty", "inf"]),
        ("--repetition-penalty", ["--repetition-penalty", "0"]),
        ("--threshold", ["--threshold=-0.1"]),
        ("--threshold", ["--threshold", "nan"]),
        ("--threshold", ["--threshold", "inf"]),
        ("--device", ["--device", "abacus"]),
        ("Invalid value for '--max-new-tokens'", ["--max-new-tokens", "0"]),
        ("Invalid value for '--dtype'", ["--dtype", "int4"]),
        ("Invalid value for '--seed'", ["--seed=-1"]),
        ("Invalid value for --show-drafts", ["--show-drafts", "--json"]),
    ],
)
def test_bad_options(refused, tiny_pipo, field, options):
    refused(field, "generate", tiny_pipo, "hi", *options)


def test_bad_prompts(refused, tiny_pipo, tmp_path):
    refused("PROMPT: is empty", "generate", tiny_pipo, " ")
    refused("PROMPT: is empty", "generate", tiny_pipo, "-", stdin="")
    assert "512" in refused("PROMPT", "generate", tiny_pipo, "word " * 900)
    assert "PAD" in refused("PROMPT", "generate", tiny_pipo, "hi <|pad|>")
    refused("Invalid value for PROMPT", "generate", tiny_pipo)
    refused("--file", "generate", tiny_pipo, "--file", tmp_path / "none.txt")
    refused("--file", "generate", tiny_pipo, "--file", "-", stdin="\n\n")
    for row in ('{"prompt": ""}', '{"text": "x"}', "{", '{"messages": [{"role": "user"}]}', "[]"):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n' + row)
        refused(f"{tmp_path}/bad.jsonl:2", "generate", tiny_pipo, "--file", tmp_path / "bad.jsonl")


def test_a_threshold_for_an_uncompressed_model(refused, tiny_llama):
    refused("--threshold", "generate", tiny_llama, "hi", "--threshold", 0.5)


def test_folders_that_are_no_model(refused, tmp_path, damaged):
    assert str(tmp_path) in refused("model", "generate", tmp_path, "hi")
    refused("model", "generate", tmp_path / "none", "hi")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused("model", "generate", damaged, "hi")
    weights.unlink()
    refused("model", "generate", damaged, "hi")
    (damaged / "config.json").write_text("{")
    refused("model", "generate", damaged, "hi")


def test_tokenizers_that_do_not_fit(refused, damaged):
    import tiny

    bigger = tiny.tokenizer()
    bigger.add_tokens([f"<extra{i}>" for i in range(50)])
    bigger.save_pretrained(damaged)
    refused("tokenizer", "generate", damaged, "hi")
    (damaged / "tokenizer.json").unlink()
    refused("tokenizer", "generate", damaged, "hi")


def test_a_missing_chat_template(refused, damaged):
    (damaged / "chat_template.jinja").unlink()
    refused("chat_template", "generate", damaged, "hi")
