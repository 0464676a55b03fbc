"""`pipo data`: checks and statistics."""

import json
import shutil

import pytest

CHAT = {"messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "The answer"}]}
GOOD = [
    CHAT,
    {"prompt": "how many"},
    {"messages": [{"role": "user", "content": "and"}]},
    {"prompt": CHAT["messages"][:1]},
]


@pytest.fixture
def good(tmp_path):
    file = tmp_path / "good.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    return file


def test_counts_without_a_tokenizer(pipo, good):
    counts = json.loads(pipo("data", good, "--json").stdout)
    assert counts == {"chats": 1, "prompts": 3, "turns": 5, "answers": 1, "problems": [], "tokens": None}
    assert "1 chats, 3 prompts, 0 bad lines" in pipo("data", good).stdout


def test_token_statistics(pipo, good, tiny_pipo):
    tokens = json.loads(pipo("data", good, "--model", tiny_pipo, "--json").stdout)["tokens"]
    assert 2 * tokens["pairs"] == tokens["total"] + tokens["pads"]
    assert tokens["targets"] < tokens["total"]
    assert tokens["training_pads"] >= tokens["pads"]
    assert tokens["longest"] >= tokens["median"] > 0
    assert "PADs" in pipo("data", good, "--model", tiny_pipo).stdout


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"text": "x"}', '"messages"'),
        (b'{"messages": []}', '"messages"'),
        (b'{"messages": [{"content": "x"}]}', '"role"'),
        (b'{"messages": [{"role": "user", "content": " "}]}', "empty user turn"),
        (b'{"prompt": ""}', "empty user turn"),
        (b'"\xff"', "no UTF-8"),
    ],
)
def test_bad_lines_are_named(pipo, tmp_path, line, reason):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(json.dumps(CHAT).encode() + b"\n\n" + line + b"\n")
    result = pipo("data", file)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{file}:3: ")
    assert reason in result.stdout.splitlines()[0]
    (problem,) = json.loads(pipo("data", file, "--json").stdout)["problems"]
    assert problem["line"] == 3


def test_a_byte_order_mark_is_no_part_of_a_line(pipo, good):
    good.write_bytes(b"\xef\xbb\xbf" + good.read_bytes())
    assert pipo("data", good).exit_code == 0
    good.write_bytes(b"\xef\xbb\xbf\n" + good.read_bytes()[3:])
    assert pipo("data", good).exit_code == 0


def test_what_training_cannot_take_is_named_and_strict_makes_it_an_error(pipo, good, tmp_path, tiny_pipo):
    bad = tmp_path / "bad.jsonl"
    pad = {"messages": [{"role": "user", "content": "so <|pad|>"}, CHAT["messages"][1]]}
    bad.write_text("[" * 200_000 + "\n" + json.dumps(pad) + "\n" + json.dumps(CHAT) + "\n")
    result = pipo("data", bad, "--model", tiny_pipo)
    assert result.exit_code == 1 and "1 chats, 0 prompts, 2 bad lines" in result.stdout
    assert f"{bad}:1: no JSON (nested too deeply)" in result.stdout
    assert f"{bad}:2: message 1: holds the special token <|pad|>" in result.stdout
    strict = pipo("data", bad, "--model", tiny_pipo, "--strict")
    assert strict.exit_code == 2 and strict.stdout == result.stdout
    assert strict.stderr.startswith(f"error: --strict: {bad}:1: no JSON (nested too deeply) (and 1 more); ")
    assert pipo("data", good, "--model", tiny_pipo, "--strict").exit_code == 0


def test_options_of_the_chat_template(pipo, refused, good, tiny_pipo, tmp_path):
    folder = shutil.copytree(tiny_pipo, tmp_path / "model")
    file = folder / "chat_template.jinja"
    file.write_text("{% if long is defined and long is false %}what what what{% endif %}" + file.read_text())

    def tokens(*options):
        return json.loads(pipo("data", good, "--model", folder, *options, "--json").stdout)["tokens"]

    more, less = tokens("--template", "long=false"), tokens()
    assert more["total"] > less["total"] and more["examples"] == less["examples"] == 4
    refused("data.template.short", "data", good, "--model", folder, "--template", "short=1")
    refused("Invalid value for --template", "data", good, "--template", "long=1")


def test_a_missing_file(refused, tmp_path):
    refused("FILE", "data", tmp_path / "none.jsonl")
