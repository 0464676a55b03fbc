"""`pipo data`: checks and statistics."""

import json

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


def test_a_missing_file(refused, tmp_path):
    refused("FILE", "data", tmp_path / "none.jsonl")
