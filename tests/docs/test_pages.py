"""Every command and every Python of README and docs: run on tiny models, or with the reason why not beside it.

A page's blocks run in their order in one folder; a block with a `title` is a file, which is written there. Before a
block that is not run stands `<!-- not run: the reason -->`; its commands still have to be ones that exist.
"""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import tiny
import typer.main
from pages import PAGES, blocks, starts_with
from places import DOCS, ROOT, SRC
from typer.testing import CliRunner

from pipo_cli.app import app

MODELS = ("Qwen/Qwen3.5-4B", "HuggingFaceTB/SmolLM2-135M-Instruct")
"""Uncompressed models that pages name: a tiny one stands in for them."""

TRAINING = "trainer.max_steps=2 trainer.per_device_train_batch_size=2 trainer.bf16=false trainer.use_cpu=true"
CUTS = {
    "sft": TRAINING,
    "distill": f"{TRAINING} rollout.max_new_tokens=4",
    "eval": "--limit 2 --samples 1 --budget tokens:4 --no-timing",
    "calibrate": "--limit 2 --samples 1 --max-new-tokens 4 --thresholds 0,0.9 --no-control",
    "generate": "--max-new-tokens 4",
    "runs/smollm2_data.py": "--n 20",
    "bench": "--prompt-lengths 8 --new-tokens 4 --trials 1",
}
"""What is put behind a verb or a module's words, so that it takes a second."""

CHATS = [
    {"messages": [{"role": "user", "content": f"what {i}"}, {"role": "assistant", "content": "so"}]} for i in range(4)
]
RECIPE = {"model": "x", "output": "x", "data": {"train": ["chats.jsonl"]}}
BUILD = {
    "output": "built",
    "questions": {"source": "prompts.jsonl", "format": "prompts"},
    "answers": {"samples": 1, "max_tokens": 8},
}


class Reader:
    """Someone who follows a page in an empty folder, with tiny models in place of real ones."""

    def __init__(self, base: str, drafted: str, pipo: str) -> None:
        self.names = dict.fromkeys(MODELS, base) | {"demo-base": drafted, "demo": pipo}
        self.base, self.pipo, self.scope = base, pipo, {}

    def starts_with(self, name: str) -> None:
        """Put what the page takes for granted into the folder."""
        if name in ("my-pipo", "my-tuned"):
            shutil.copytree(self.pipo, name)
        elif name == "inputs":
            encoded = tiny.tokenizer()("what is the answer", return_tensors="pt", return_token_type_ids=False)
            self.scope[name] = dict(encoded)
        else:
            build = BUILD | {"teacher": {"model": self.base, "device": "cpu"}}
            rows = {"chats.jsonl": CHATS, "prompts.jsonl": [{"question": "so?"}] * 2, "answers.jsonl": CHATS[:1]}
            rows |= {"recipe.yaml": [RECIPE], "build.yaml": [build]}
            rows |= {"questions.jsonl": [{"question": "how many?", "answer": "2"}]}
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows[name]))

    def follows(self, block) -> None:
        if block.title is not None:
            Path(block.title).write_text(self.renamed(block.text))
        elif block.reason is None and block.language == "python":
            exec(self.renamed(block.text), self.scope)
        elif block.reason is None and block.is_shell:
            for command in block.commands:
                self.types(command)

    def renamed(self, text: str) -> str:
        for name, folder in self.names.items():
            text = re.sub(rf"(?<=[\s\"'=]){re.escape(name)}(?=[\s\"',}}]|$)", folder, text)
        return text

    def types(self, command: str) -> None:
        program, *words = shlex.split(self.renamed(f" {command}"))
        if program == "python":
            script = ROOT / words[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.argv", [*words, *shlex.split(CUTS.get(words[0], ""))])
                runpy.run_path(str(script), run_name="__main__")
            return
        words += shlex.split(CUTS.get(words[0], ""))
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (command, result.output, result.exception)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_followed(name, tiny_llama, tiny_drafted, tiny_pipo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader = Reader(tiny_llama, tiny_drafted, tiny_pipo)
    for file in starts_with(PAGES[name]):
        reader.starts_with(file)
    for block in blocks(PAGES[name]):
        reader.follows(block)


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_says_why(name):
    for block in blocks(PAGES[name]):
        if not block.is_shell:
            typed = re.search(r"^(\$ |pipo |pip |make |vllm |accelerate )", block.text, re.MULTILINE)
            assert typed is None, f"a command in a block that is neither `sh` nor `console`: {block.text}"
        elif block.reason is None:
            for command in block.commands:
                assert re.match(r"pipo |python runs/", command), f"not run, and no reason why: {command}"
        assert block.reason is None or len(block.reason.split()) >= 2


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_exists(name):
    for block in blocks(PAGES[name]):
        if block.is_shell and block.reason is not None:
            for command in block.commands:
                check_exists(shlex.split(command))


def check_exists(words: list[str]) -> None:
    """A verb has the options that are given, make the target, the repository the files of runs/."""
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    if "pipo_cli" in words:
        words = ["pipo", *words[words.index("pipo_cli") + 1 :]]
    if words[0] == "pipo":
        verb = words[1]
        typer.main.get_command(app).commands[verb].make_context(verb, [word for word in words[2:] if word != "&"])
    for word in words:
        assert not word.startswith("runs/") or (ROOT / word).exists(), word


def test_the_messages_of_troubleshooting_are_the_programs_own():
    source = " ".join(path.read_text(encoding="utf-8") for path in SRC.rglob("*.py"))
    messages = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for part in re.split(r"…|: |; ", message.removeprefix("error: ")):
            assert part.strip() in source, part


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_the_site_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#:\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
