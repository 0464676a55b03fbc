"""The first page of results says what the committed reports and outputs say, and the README what that page says."""

import json
import re

import pytest
from places import DOCS, ROOT

RESULTS = DOCS / "results"
INDEX = (RESULTS / "index.md").read_text()
README = (ROOT / "README.md").read_text()
METHODS = ("regular", "mtp", "speculative", "pipo@0.9", "pipo@2")
"""In the order of the page's rows, by the names that the reports have."""


def table(text, header):
    """Rows of the first table whose header line begins so: name of the column -> cell."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def report(name):
    return {row["method"]: row for row in table((RESULTS / f"{name}.md").read_text(), "| method | avg@k ")}


def bench(name, **cell):
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return {row["method"]: row for row in rows if all(row[key] == value for key, value in cell.items())}


def number(cell):
    return float(re.match(r"[\d,.]+", cell).group().replace(",", ""))


@pytest.fixture(scope="module")
def page():
    return dict(zip(METHODS, table(INDEX, "| method |"), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_and_time_are_those_of_the_reports(page, method):
    accuracy, speed = report("smollm2_gsm_accuracy")[method], report("smollm2_gsm_speed")[method]
    ends = accuracy["95% CI"].replace("%", "")
    score = accuracy["avg@k"].replace("%", " %")
    assert page[method]["right answers, avg@4 (95 % interval)"] == f"{score} ({ends})"
    assert number(page[method]["tokens per step"]) == pytest.approx(number(accuracy["tokens/step"]), abs=0.005)
    assert number(page[method]["TPOT"]) == pytest.approx(float(speed["TPOT ms"]), abs=0.051)


def test_what_was_benched_is_what_the_outputs_say(page):
    short = bench("smollm2_bench_cpu", prompt_length=2048)
    long = bench("smollm2_bench_cpu", prompt_length=6144)
    for method, row in (("regular", "regular"), ("pipo", "pipo@0.9")):
        assert number(page[row]["TTFT, 2K prompt"]) == round(short[method]["ttft_ms"])
        assert number(page[row]["TTFT, 6K prompt"]) == round(long[method]["ttft_ms"])
        assert number(page[row]["KV bytes per token"]) == round(short[method]["kv_bytes_per_token"])
    batch = bench("smollm2_bench_vllm", concurrency=16)
    assert number(page["regular"]["tokens/s, 16 requests"]) == pytest.approx(
        batch["regular"]["tokens_per_second"], abs=0.05
    )
    every = float(re.search(r"\[b\] With every draft kept: ([\d.]+)\.", INDEX).group(1))
    assert every == pytest.approx(batch["pipo"]["tokens_per_second"], abs=0.05)


@pytest.mark.parametrize("method", ["mtp", "speculative", "pipo@2"])
def test_what_no_output_holds_is_not_measured(page, method):
    assert all(method not in bench(name) for name in ("smollm2_bench_cpu", "smollm2_bench_vllm"))
    for column in ("TTFT, 2K prompt", "TTFT, 6K prompt", "KV bytes per token", "tokens/s, 16 requests"):
        assert page[method][column] == "not measured"


def test_the_readmes_figures_are_the_pages():
    cost = README.split("**What it costs.**")[1].split("\n\n")[0].split("The shipped 135M model")[1]
    figures = re.findall(r"\d+\.\d+", cost)
    assert len(figures) >= 5
    assert [figure for figure in figures if figure not in INDEX] == []


def test_the_page_is_short():
    assert len(INDEX.splitlines()) <= 80
