"""What a hosted repository reads: the workflow, the templates, the hooks; and the make targets that texts name."""

import re
from typing import Any

import pytest
import yaml
from places import DOCS, ROOT, SRC

GITHUB = ROOT / ".github"
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
FORMS = ("bug", "feature")


def load(path) -> Any:
    return yaml.safe_load(path.read_text())


def form(name):
    return load(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")


def make_targets(text):
    """What `make` is asked for in the code of a Markdown text, as a command and not as a word of a comment."""
    code = re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)
    return {target for part in code for target in re.findall(r"(?:^|`|&& |=\S+ )make ([a-z-]+)", part, re.MULTILINE)}


def test_the_workflow_calls_make_and_no_strangers_actions():
    workflow = load(GITHUB / "workflows" / "ci.yml")
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs == ["make test", "make docs"]
    assert {run.removeprefix("make ") for run in runs} <= TARGETS
    actions = [step for step in job["steps"] if "uses" in step]
    assert all(step["uses"].startswith("actions/") for step in actions)
    (python,) = [step["with"] for step in actions if "setup-python" in step["uses"]]
    assert python["python-version"] == "3.11" and python["cache"] == "pip"
    assert all((ROOT / name).is_file() for name in python["cache-dependency-path"].split())


@pytest.mark.parametrize(
    "text", [ROOT / "CONTRIBUTING.md", ROOT / "README.md", DOCS / "releasing.md"], ids=lambda p: p.name
)
def test_the_make_targets_that_a_text_names_exist(text):
    named = make_targets(text.read_text())
    assert "test" in named
    assert named <= TARGETS


def test_hooks_are_the_tools_of_the_checkout():
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    pinned = (ROOT / "constraints.txt").read_text()
    tools = [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    assert tools == ["ruff", "ruff", "mypy"]
    assert all(re.search(rf"^{tool}==", pinned, re.MULTILINE) for tool in tools)


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_is_one(name):
    found = form(name)
    assert found["name"] and found["description"]
    assert len({part["id"] for part in found["body"]}) == len(found["body"])
    for part in found["body"]:
        assert part["type"] == "textarea" and part["attributes"]["label"]


def test_a_bug_report_asks_for_what_is_needed():
    required = {part["id"] for part in form("bug")["body"] if part.get("validations", {}).get("required")}
    assert {"command", "expected", "env"} <= required
    verbs = set(re.findall(r"`pipo ([a-z]+)", (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()))
    assert "env" in verbs
    assert all((SRC / "pipo_cli" / f"{verb}.py").is_file() for verb in verbs)
    assert load(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": True}
