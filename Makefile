# Everything runs in .venv, or .venv-lowest, which each target makes itself; PYTHON says with which interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOWEST := .venv-lowest
# What asks most of each dependency, in a few minutes.
LOWEST_TESTS := $(patsubst %,tests/test_%.py,attention cli constraint decoding excerpt kv_cache kv_schedules \
	langchain_chat langchain_llm llama_index_agents llama_index_llm \
	llama_index_rag llama_index_structured llama_index_tools loading members model_formats model_requirements \
	packaging probe prompt recurrent scheduler scoring template transformers_parity vocabulary wild_schemas)
BENCHMARKS = $(shell grep -ls __main__ benchmarks/*.py)
ARGS ?=
# The models of the tests are so small that threads cost more than they gain: the cores get a process each instead. Where
# ARGS name a file of tests, starting those would take longer than the file.
WORKERS = $(if $(findstring tests/,$(ARGS)),,-n auto --dist worksteal)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest lint format bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14
	@echo 'ARGS="..." is passed on, for instance: make demo ARGS="--questions 30"'

demo: $(READY) ## ask the embedded demo ensemble a dozen questions
	$(BIN)/deepen demo $(ARGS)

test: $(READY) ## run the everyday tests, in minutes: all but the slow ones
	$(PYTEST) -m 'not slow' $(WORKERS) $(ARGS)

test-all: $(READY) ## run all tests, the slow ones too, with as many examples as CI tries
	HYPOTHESIS_PROFILE=thorough $(PYTEST) $(WORKERS) $(ARGS)

test-lowest: BIN := $(LOWEST)/bin
test-lowest: $(LOWEST)/.ready ## run tests of every dependency with the oldest versions that are allowed
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m 'not slow' -n auto --dist worksteal $(LOWEST_TESTS) $(ARGS)

lint: $(READY) ## check style, format, types and the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## mend what the style checks can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## run every benchmark
	@set -e; for file in $(BENCHMARKS); do \
		module=$$(basename $$file .py); \
		echo "benchmarks.$$module"; \
		$(BIN)/python -m benchmarks.$$module $(ARGS); \
	done

clean: ## remove the environment and all that was built
	rm -rf $(VENV) $(LOWEST) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip goes first, because older ones know no dependency groups; then torch, alone: its constraint takes a CPU build where
# one is offered.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'deepen-integrations needs Python 3.10 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt 'pip>=25.1'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all]' --group dev
	@touch $@

# Only what constraints-lowest.txt names is older than in .venv.
$(LOWEST)/.ready: pyproject.toml constraints.txt constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	awk -F== 'NR == FNR { lowest[$$1]; print; next } !($$1 in lowest)' constraints-lowest.txt constraints.txt \
		>$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/constraints.txt torch==2.13.0
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[all]' \
		filelock hypothesis langchain-tests langgraph pytest pytest-asyncio pytest-socket pytest-xdist
	@touch $@
