"""The README's own commands, on a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tiny
from places import ROOT
from typer.testing import CliRunner

from pipo_cli.app import app

README = (ROOT / "README.md").read_text()
RECIPE = {
    "model": "x",
    "output": "x",
    "data": {"train": ["chats.jsonl"]},
    "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
}
BUILD = {
    "output": "built",
    "questions": {"source": "prompts.jsonl", "format": "prompts"},
    "answers": {"samples": 1, "max_tokens": 8},
}


def commands():
    block = README.split("## Your own model")[1].split("```console\n")[1].split("```")[0]
    lines = [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]
    return [line for line in lines if line.startswith("pipo ")]


def test_the_readme_names_the_two_commands():
    assert "make demo" in README and "make test" in README


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_work_in_their_order(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chats = [
        {"messages": [{"role": "user", "content": f"what {i}"}, {"role": "assistant", "content": "so"}]}
        for i in range(4)
    ]
    Path("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    Path("recipe.yaml").write_text(json.dumps(RECIPE))
    Path("prompts.jsonl").write_text('{"question": "so?"}\n' * 2)
    Path("build.yaml").write_text(json.dumps(BUILD | {"teacher": {"model": tiny_llama, "device": "cpu"}}))
    assert len(commands()) >= 6
    for command in commands():
        words = shlex.split(command.replace("Qwen/Qwen3.5-4B", tiny_llama))[1:]
        if words[0] == "eval":
            words += ["--limit", "2", "--samples", "1", "--budget", "tokens:4"]
        if words[0] == "calibrate":
            words += ["--limit", "2", "--samples", "1", "--max-new-tokens", "4"]
        if words[0] == "serve":
            continue  # goes on until it is stopped: tests/serving starts it
        if words[0] == "generate":
            words += ["--max-new-tokens", "4"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_the_readmes_python_works(tiny_pipo):
    block = README.split("```python\n")[1].split("```")[0].replace("my-tuned", tiny_pipo)
    inputs = tiny.tokenizer()("what is the answer", return_tensors="pt", return_token_type_ids=False)
    scope = {"inputs": dict(inputs)}
    exec(block, scope)
    assert scope["out"].sequences.shape[0] == 1
